"""What ships with mpq beside its code: the model `mpq/tiny-llama`, and the text it was trained on.

May import the standard library and `errors` only: no torch, no transformers. Loading the model
looks as if it belonged here and does not: that is `modeling.loading`; cutting the text into
windows is `data`, and training the model is `experiments/000_tiny_llama/train.py`.
"""
