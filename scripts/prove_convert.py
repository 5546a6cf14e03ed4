"""Let TensorFlow write checkpoints of tiny BERTs, convert them, and compare the logits of both frameworks.

    python scripts/prove_convert.py write FOLDER      with tensorflow and the model garden
    python scripts/prove_convert.py compare FOLDER    convert what was written; exits with 1 if logits differ
    python scripts/prove_convert.py record FOLDER     renew tests/fixtures/convert, which the tests read without them

scripts/prove_convert.sh makes the environment and runs the first two, one process each: torch's triton and tensorflow
crash in one. ``google`` is a graph in TensorFlow 1's style, written from the equations of the BERT article with the
variable names of google-research/bert; the others are the model garden's own networks (tf-models-official).
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
}
CONFIG = {**SHAPE, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(35))]
SAMPLES, LENGTH = 3, 10
LARGEST_DIFFERENCE = 1e-5
GOOGLE = ("google", "google_tanh", "google_bare")
GARDEN = ("garden_pretrainer_v2", "garden_pretrainer", "garden_encoder_v2", "garden_encoder")
KINDS = (*GOOGLE, *GARDEN)
OPTIONS = {"google_tanh": ("hidden_act=gelu_pytorch_tanh",)}
"""What ``convert`` has to be told."""
FILE = "expected.safetensors"
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "convert"

Arrays = dict[str, np.ndarray]


def inputs(seed: int = 5) -> Arrays:
    """Token ids, mask and segments of ``SAMPLES`` sequences, of which two are padded."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(LENGTH) < np.array([[LENGTH], [7], [4]])).astype(np.int32)
    ids = rng.integers(5, SHAPE["vocab_size"], (SAMPLES, LENGTH)).astype(np.int32) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": (np.arange(LENGTH) >= 3).astype(np.int32) * mask,
    }


def google_variables(seed: int = 3) -> Arrays:
    """Random weights by the variable names of google-research/bert."""
    rng = np.random.default_rng(seed)
    hidden, inner, words = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "bert/embeddings/word_embeddings": (words, hidden),
        "bert/embeddings/position_embeddings": (SHAPE["max_position_embeddings"], hidden),
        "bert/embeddings/token_type_embeddings": (SHAPE["type_vocab_size"], hidden),
        "bert/pooler/dense": (hidden, hidden),
        "cls/predictions/output_bias": (words,),
        "cls/predictions/transform/dense": (hidden, hidden),
        "cls/seq_relationship/output_weights": (2, hidden),
        "cls/seq_relationship/output_bias": (2,),
    }
    norms = ["bert/embeddings/LayerNorm", "cls/predictions/transform/LayerNorm"]
    for number in range(SHAPE["num_hidden_layers"]):
        layer = f"bert/encoder/layer_{number}"
        for part in ("self/query", "self/key", "self/value", "output/dense"):
            shapes[f"{layer}/attention/{part}"] = (hidden, hidden)
        shapes[f"{layer}/intermediate/dense"] = (hidden, inner)
        shapes[f"{layer}/output/dense"] = (inner, hidden)
        norms += [f"{layer}/attention/output/LayerNorm", f"{layer}/output/LayerNorm"]
    found: Arrays = {}
    for name, shape in shapes.items():
        is_dense = len(shape) == 2 and not name.endswith(("embeddings", "output_weights"))
        found[f"{name}/kernel" if is_dense else name] = rng.normal(0, 0.4, shape)
        if is_dense:
            found[f"{name}/bias"] = rng.normal(0, 0.2, shape[1])
    for name in norms:
        found |= {f"{name}/gamma": rng.normal(1, 0.2, hidden), f"{name}/beta": rng.normal(0, 0.2, hidden)}
    return {name: value.astype(np.float32) for name, value in found.items()}


def google_logits(tf: Any, w: dict[str, Any], batch: Arrays, tanh_gelu: bool) -> tuple[Any, Any]:
    """The forward pass of BERT, Devlin et al. 2018, on the variables ``w``: MLM logits (B, L, V), NSP logits (B, 2)."""

    def norm(x: Any, name: str) -> Any:
        mean = tf.reduce_mean(x, -1, keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), -1, keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-12) * w[f"{name}/gamma"] + w[f"{name}/beta"]

    def dense(x: Any, name: str) -> Any:
        return tf.einsum("bli,io->blo", x, w[f"{name}/kernel"]) + w[f"{name}/bias"]

    def gelu(x: Any) -> Any:
        if tanh_gelu:
            return 0.5 * x * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + tf.math.erf(x / math.sqrt(2.0)))

    heads = SHAPE["num_attention_heads"]
    embeddings = "bert/embeddings"
    x = tf.gather(w[f"{embeddings}/word_embeddings"], batch["input_ids"])
    x += w[f"{embeddings}/position_embeddings"][:LENGTH]
    x += tf.gather(w[f"{embeddings}/token_type_embeddings"], batch["token_type_ids"])
    x = norm(x, f"{embeddings}/LayerNorm")
    hidden_keys = (1.0 - batch["attention_mask"][:, None, None, :].astype(np.float32)) * -10000.0
    for number in range(SHAPE["num_hidden_layers"]):
        layer = f"bert/encoder/layer_{number}"
        q, k, v = (
            tf.reshape(dense(x, f"{layer}/attention/self/{part}"), (SAMPLES, LENGTH, heads, -1))
            for part in ("query", "key", "value")
        )
        scores = tf.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(SHAPE["hidden_size"] // heads) + hidden_keys
        context = tf.reshape(tf.einsum("bhqk,bkhd->bqhd", tf.nn.softmax(scores), v), x.shape)
        x = norm(x + dense(context, f"{layer}/attention/output/dense"), f"{layer}/attention/output/LayerNorm")
        inner = gelu(dense(x, f"{layer}/intermediate/dense"))
        x = norm(x + dense(inner, f"{layer}/output/dense"), f"{layer}/output/LayerNorm")
    y = norm(gelu(dense(x, "cls/predictions/transform/dense")), "cls/predictions/transform/LayerNorm")
    mlm = tf.einsum("blh,vh->blv", y, w[f"{embeddings}/word_embeddings"]) + w["cls/predictions/output_bias"]
    pooled = tf.tanh(dense(x[:, :1], "bert/pooler/dense"))[:, 0]
    nsp = tf.einsum("bh,nh->bn", pooled, w["cls/seq_relationship/output_weights"])
    return mlm, nsp + w["cls/seq_relationship/output_bias"]


def write_google(folder: Path, prefix: str = "bert/", slots: bool = True, tanh_gelu: bool = False) -> Arrays:
    """Let a TensorFlow 1 session save ``folder/bert_model.ckpt``; returns the logits that it computed."""
    import tensorflow

    tf = tensorflow.compat.v1
    values = google_variables()
    with tf.Graph().as_default(), tf.Session() as session:
        w = {
            name: tf.get_variable(name.replace("bert/", prefix, 1), initializer=tf.constant(value))
            for name, value in values.items()
        }
        if slots:
            tf.get_variable("global_step", initializer=tf.constant(1000, tf.int64), trainable=False)
            for variable in list(w.values()):
                for slot in ("adam_m", "adam_v"):
                    tf.get_variable(f"{variable.op.name}/{slot}", initializer=tf.zeros(variable.shape))
        session.run(tf.global_variables_initializer())
        mlm, nsp = session.run(google_logits(tensorflow, w, inputs(), tanh_gelu))
        tf.train.Saver().save(session, str(folder / "bert_model.ckpt"), write_meta_graph=False, write_state=False)
    return {"mlm": mlm, "nsp": nsp}


def write_garden(kind: str, folder: Path) -> Arrays:
    """Let the model garden's network ``kind`` save ``folder/bert_model.ckpt``; returns the logits it computed."""
    import tensorflow as tf
    from official.nlp.modeling import layers, models, networks

    shape: dict[str, Any] = {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "num_attention_heads")}
    shape["max_sequence_length"] = SHAPE["max_position_embeddings"]
    shape |= {"num_layers": SHAPE["num_hidden_layers"], "type_vocab_size": SHAPE["type_vocab_size"]}
    is_v2 = kind.endswith("_v2")
    inner: dict[str, Any] = {"inner_dim" if is_v2 else "intermediate_size": SHAPE["intermediate_size"]}
    encoder = (networks.BertEncoderV2 if is_v2 else networks.BertEncoder)(**shape, **inner)
    batch = inputs()
    words = {"input_word_ids": batch["input_ids"], "input_mask": batch["attention_mask"]}
    words["input_type_ids"] = batch["token_type_ids"]
    positions = {"masked_lm_positions": np.tile(np.arange(LENGTH, dtype=np.int32), (SAMPLES, 1))}
    tf_gelu = lambda x: tf.keras.activations.gelu(x, approximate=True)  # noqa: E731
    if kind == "garden_pretrainer_v2":
        head = layers.ClassificationHead(SHAPE["hidden_size"], num_classes=2, name="next_sentence")
        model = models.BertPretrainerV2(encoder, mlm_activation=tf_gelu, classification_heads=[head])
        words |= positions
    elif kind == "garden_pretrainer":
        model = models.BertPretrainer(encoder, 2, LENGTH, activation=tf_gelu, output="logits")
        words |= positions
    else:
        model = encoder
    model(words)
    rng = np.random.default_rng(11)
    for variable in model.variables:
        variable.assign(rng.normal(1 if "gamma" in variable.name else 0, 0.4, variable.shape))
    found = model(words, training=False)
    tf.train.Checkpoint(**{"encoder" if kind == "garden_encoder_v2" else "model": model}).write(
        str(folder / "bert_model.ckpt")
    )
    if kind == "garden_pretrainer_v2":
        return {"mlm": found["mlm_logits"].numpy(), "nsp": found["next_sentence"].numpy()}
    if kind == "garden_pretrainer":
        return {"mlm": found["masked_lm"].numpy(), "nsp": found["classification"].numpy()}
    found = found if isinstance(found, dict) else {"sequence_output": found[0], "pooled_output": found[1]}
    return {"hidden": found["sequence_output"].numpy(), "pooled": found["pooled_output"].numpy()}


def differences(folder: Path, expected: Arrays) -> dict[str, float]:
    """Load ``folder`` with transformers; the largest difference of each output from ``expected``."""
    import torch
    import transformers

    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(**{name: torch.from_numpy(value).long() for name, value in inputs().items()})
    names = {"mlm": "prediction_logits", "nsp": "seq_relationship_logits"}
    names |= {"hidden": "last_hidden_state", "pooled": "pooler_output"}
    return {key: float(np.abs(found[names[key]].numpy() - value).max()) for key, value in expected.items()}


def write(kind: str, folder: Path) -> Path:
    """Everything that ``convert`` needs of one ``kind``, and ``expected.safetensors`` with what TensorFlow computed."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "bert_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    options = {"google_tanh": {"tanh_gelu": True}, "google_bare": {"prefix": "", "slots": False}}
    if kind.startswith("google"):
        expected = write_google(folder, **options.get(kind, {}))  # type: ignore[arg-type]
    else:
        expected = write_garden(kind, folder)
    (folder / "expected").mkdir()
    save_file({key: np.ascontiguousarray(value) for key, value in expected.items()}, folder / "expected" / FILE)
    return folder


def record(folder: Path, path: Path) -> None:
    """Write the variables of the TensorFlow checkpoint in ``folder``, and the logits, as one fixture."""
    import tensorflow as tf
    from safetensors.numpy import load_file, save_file

    reader = tf.train.load_checkpoint(str(folder / "bert_model.ckpt"))
    names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    arrays = {f"variable:{name}": np.ascontiguousarray(reader.get_tensor(name)) for name in names}
    save_file(arrays | {f"expected:{key}": value for key, value in load_file(folder / "expected" / FILE).items()}, path)


def compare(folder: Path) -> bool:
    """Convert what ``write`` wrote below ``folder`` and print the differences; whether all are small enough."""
    from safetensors.numpy import load_file

    from bert_pretrain.hub.convert.command import main as convert

    worst = 0.0
    for source in sorted(path.parent for path in folder.glob("*/bert_config.json")):
        out = folder / "converted" / source.name
        out.parent.mkdir(exist_ok=True)
        convert([f"source={source}", f"out_dir={out}", *OPTIONS.get(source.name, ())])
        found = differences(out, load_file(source / "expected" / FILE))
        print(source.name, *(f"{key} {value:.2e}" for key, value in found.items()), flush=True)
        worst = max(worst, *found.values())
    print(f"largest difference {worst:.2e}, allowed {LARGEST_DIFFERENCE:.0e}")
    return worst <= LARGEST_DIFFERENCE


def main() -> None:
    """``write FOLDER [KIND ...]``, ``compare FOLDER`` or ``record FOLDER``: see above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare", "record"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="*", default=KINDS)
    given = parser.parse_args()
    if given.action == "write":
        for kind in given.kinds:
            write(kind, given.folder / kind)
    elif given.action == "record":
        FIXTURES.mkdir(parents=True, exist_ok=True)
        for kind in set(KINDS) - {"google_tanh"}:  # which has the names of google
            record(given.folder / kind, FIXTURES / f"{kind}.safetensors")
    elif not compare(given.folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
