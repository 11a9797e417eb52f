"""Trains `mpq/tiny-llama`, the model that ships with mpq, on one CPU core within an hour.

    python experiments/000_tiny_llama/train.py --out mpq/assets/tiny_llama

Writes the tokenizer first, then the model whenever the validation loss has a new minimum, so a
run that is stopped leaves a usable model. The text is read from the running interpreter; its
digest and the Python version land in `training.json`, the curve in `training.csv`.
"""

import argparse
import csv
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mpq.assets.prose import PARTS, Part, digest, documents

BOS, EOS = "<s>", "</s>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the outcome, beside the text and the libraries' versions."""

    seed: int = 0
    vocabulary: int = 2048
    window: int = 256
    hidden: int = 256
    intermediate: int = 640
    layers: int = 6
    heads: int = 8
    key_value_heads: int = 2
    steps: int = 600
    warmup: int = 30
    batch: int = 8
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    check_every: int = 50
    patience: int = 4
    spread: float = 1.0
    cpu_minutes: float = 50.0


def main() -> None:
    """Reads the text, trains the tokenizer, trains the model, writes all of it to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the model")
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="length of the schedule")
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)

    tokenizer = train_tokenizer(recipe)
    tokenizer.save_pretrained(arguments.out)
    tokens = {part: tokenized(part, tokenizer) for part in PARTS}
    model = LlamaForCausalLM(configuration(recipe))
    facts = {
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": {part: len(stream) for part, stream in tokens.items()},
        "text_sha256": {part: digest(documents(part)) for part in PARTS},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    curve = train(model, tokens["train"], tokens["validation"], recipe, arguments.out)
    facts["best"] = min(curve, key=lambda row: row["validation_loss"])
    facts["cpu_minutes"] = round(time.process_time() / 60, 1)
    shipped = LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
    facts["heldout_loss"] = validation_loss(shipped, tokens["validation"], recipe)
    (arguments.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the training part, with `<s>` before and `</s>` behind."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((document.text for document in documents("train")), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=recipe.window,
        clean_up_tokenization_spaces=False,
    )


def tokenized(part: Part, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The tokens of a part, int64 [tokens], every document followed by `</s>`."""
    texts = [document.text for document in documents(part)]
    pieces = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for piece in pieces for token in [*piece, tokenizer.eos_token_id]])


def configuration(recipe: Recipe) -> LlamaConfig:
    """The shape of the model: Llama with grouped-query attention and tied embeddings."""
    return LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=recipe.window,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def windows(stream: Tensor, starts: Tensor, length: int) -> Tensor:
    """Windows of `length` tokens, int64 [starts, length], each beginning with `<s>` (token 0)."""
    body = stream[starts[:, None] + torch.arange(length - 1)]
    return torch.cat([torch.zeros(len(starts), 1, dtype=torch.int64), body], dim=1)


def batches(stream: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """Endless batches: each epoch cuts the whole stream anew, from a random offset."""
    generator = torch.Generator().manual_seed(recipe.seed)
    stride = recipe.window - 1
    while True:
        offset = int(torch.randint(stride, (1,), generator=generator))
        starts = torch.arange(offset, len(stream) - stride, stride)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for chosen in starts.split(recipe.batch):
            if len(chosen) == recipe.batch:
                yield windows(stream, chosen, recipe.window)


def loss_of(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Mean cross entropy of the next token, nats, of windows int64 [N, T]."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, stream: Tensor, recipe: Recipe) -> float:
    """Mean loss a token over all whole windows of the stream, nats."""
    model.eval()
    starts = torch.arange(0, len(stream) - recipe.window + 2, recipe.window - 1)
    sums = [
        loss_of(model, windows(stream, chosen, recipe.window)).item() * len(chosen)
        for chosen in starts.split(recipe.batch)
    ]
    model.train()
    return sum(sums) / len(starts)


def optimizers_of(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the tied embedding and the norms' gains.

    On this text Muon needed less than a third of the tokens that AdamW alone needed to a loss of
    5.7. `match_rms_adamw` lets both use one learning rate.
    """
    blocks = [parameter for parameter in model.model.layers.parameters() if parameter.dim() == 2]
    others = [
        parameter for parameter in model.parameters() if id(parameter) not in map(id, blocks)
    ]
    return [
        torch.optim.Muon(
            blocks,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, recipe: Recipe) -> float:
    """The share of the peak learning rate at a step: linear warm-up, then a cosine."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(
    model: LlamaForCausalLM, stream: Tensor, validation: Tensor, recipe: Recipe, out: Path
) -> list[dict[str, float]]:
    """The curve of the run; the model with the lowest validation loss lies in `out` after it."""
    optimizers = optimizers_of(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, recipe))
        for optimizer in optimizers
    ]
    curve: list[dict[str, float]] = []
    running: list[float] = []
    best, since_best = math.inf, 0
    model.train()
    for step, batch in enumerate(batches(stream, recipe), start=1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepped in (*optimizers, *schedules):
            stepped.step()
        model.zero_grad(set_to_none=True)
        running.append(loss.item())
        if step % recipe.check_every and step < recipe.steps:
            continue
        with torch.autocast("cpu", dtype=torch.bfloat16):
            heldout = validation_loss(model, validation, recipe)
        row = {
            "step": step,
            "epoch": round(step * recipe.batch * (recipe.window - 1) / len(stream), 3),
            "train_loss": round(sum(running) / len(running), 4),
            "validation_loss": round(heldout, 4),
            "cpu_minutes": round(time.process_time() / 60, 2),
        }
        curve.append(row)
        running.clear()
        write_curve(curve, out / "training.csv")
        print(row, flush=True)
        since_best = 0 if heldout < best else since_best + 1
        if heldout < best:
            best = heldout
            save(model, recipe, out)
        is_spent = step >= recipe.steps or row["cpu_minutes"] >= recipe.cpu_minutes
        if is_spent or since_best >= recipe.patience:
            break
    return curve


@torch.no_grad()
def spread_channels(model: LlamaForCausalLM, recipe: Recipe) -> None:
    """Gives channels unequal sizes, as those of large models are, and changes no output by a bit.

    An hour of one core trains no outlier channels (Dettmers et al., LLM.int8(), section 4), and
    where all channels are alike, three bits cost next to nothing. So what one tensor gains along
    a channel its readers lose: norm to its projections, v to o, up to down. The factors are
    powers of two, 2^round(N(0, spread)), so every product stays what it was, rounding included;
    it is the inverse of what AWQ and SmoothQuant do before they quantise.
    """
    generator = torch.Generator().manual_seed(recipe.seed)

    def draw(channels: int) -> Tensor:
        exponents = torch.randn(channels, generator=generator) * recipe.spread
        return torch.exp2(exponents.round())

    repeats = recipe.heads // recipe.key_value_heads
    for block in model.model.layers:
        heads, gates = block.self_attn, block.mlp
        for norm, readers in (
            (block.input_layernorm, (heads.q_proj, heads.k_proj, heads.v_proj)),
            (block.post_attention_layernorm, (gates.gate_proj, gates.up_proj)),
        ):
            factors = draw(recipe.hidden)
            norm.weight.mul_(factors)
            for reader in readers:
                reader.weight.div_(factors)
        factors = draw(recipe.intermediate)
        gates.up_proj.weight.mul_(factors[:, None])
        gates.down_proj.weight.div_(factors)
        factors = draw(len(heads.v_proj.weight))
        heads.v_proj.weight.mul_(factors[:, None])
        # Grouped queries: a head of v is read by `repeats` heads of o.
        heads.o_proj.weight.div_(
            factors.view(recipe.key_value_heads, -1).repeat_interleave(repeats, dim=0).flatten()
        )


def save(model: LlamaForCausalLM, recipe: Recipe, out: Path) -> None:
    """Writes the model with spread channels in bfloat16, as most released models are written."""
    shipped = LlamaForCausalLM(model.config)
    shipped.load_state_dict(model.state_dict())
    spread_channels(shipped, recipe)
    shipped.to(torch.bfloat16).save_pretrained(out)


def write_curve(curve: list[dict[str, float]], path: Path) -> None:
    """Writes the curve as CSV, one row a check."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)


if __name__ == "__main__":
    main()
