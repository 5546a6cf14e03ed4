"""Google's TensorFlow 1 checkpoints: ``bert_model.ckpt`` of https://github.com/google-research/bert.

With or without the prefix ``bert/``; pretraining adds ``adam_m`` and ``adam_v`` of every variable and ``global_step``.
Dense kernels are (in, out) there, (out, in) in PyTorch; the next-sentence weights are (2, H) in both.
"""

from bert_pretrain.hub.convert.layout import HEADLESS, KERNEL, LAYER_NORM, Layout

GOOGLE = Layout(
    title="TensorFlow 1, google-research/bert",
    mark=r"(^|/)encoder/layer_\d+/attention/self/query/kernel$",
    rules=(
        (r"/", "."),
        *HEADLESS,
        (r"\.layer_(\d+)\.", r".layer.\1."),
        (r"_embeddings$", "_embeddings.weight"),
        KERNEL,
        *LAYER_NORM,
        (r"^cls\.predictions\.output_bias$", "cls.predictions.bias"),
        (r"^cls\.seq_relationship\.output_weights$", "cls.seq_relationship.weight"),
        (r"^cls\.seq_relationship\.output_bias$", "cls.seq_relationship.bias"),
    ),
    reshape=lambda name, _, tensor: tensor.T if name.endswith("/kernel") else tensor,
)
