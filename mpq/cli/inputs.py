"""From a config to what a stage works on: the model, and the text or examples it looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mpq.config import SearchConfig
    from mpq.data.examples import ExampleSplits
    from mpq.data.windows import Splits
    from mpq.modeling.loading import LoadedModel


def load_model_of(config: SearchConfig) -> LoadedModel:
    """The model that `[model]` names, on its device.

    Raises:
        ModelError: It cannot be loaded as asked.
    """
    from mpq.modeling.loading import load_model

    section = config.model
    return load_model(
        section.id,
        task=section.task,
        dtype=section.dtype,
        device=section.device,
        revision=section.revision,
    )


def load_data_of(
    config: SearchConfig, tokenizer: PreTrainedTokenizerBase
) -> Splits | ExampleSplits:
    """The three splits that `[data]` names: token windows, or examples for `source = "sst2"`.

    Raises:
        DataError: Text or labels that are missing, unreadable, or fewer than asked for.
    """
    from mpq.data.examples import load_examples
    from mpq.data.windows import load_splits

    section = config.data
    seed = config.search.seed
    if section.source == "sst2":
        return load_examples(
            tokenizer=tokenizer,
            source=section.source,
            calibration_examples=section.calibration_examples,
            search_examples=section.search_examples,
            heldout_examples=section.heldout_examples,
            max_length=section.max_length,
            prompt=section.prompt,
            choices=section.choices,
            path=section.path,
            seed=seed,
        )
    return load_splits(
        tokenizer=tokenizer,
        source=section.source,
        window=section.window,
        calibration_tokens=section.calibration_tokens,
        search_tokens=section.search_tokens,
        heldout_tokens=section.heldout_tokens,
        path=section.path,
        heldout_path=section.heldout_path,
        dataset=section.dataset,
        subset=section.subset,
        split=section.split,
        column=section.column,
        seed=seed,
    )
