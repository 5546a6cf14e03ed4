"""What the sources claim, in our own words, and nothing more. A study's claim names one of these as its source."""

from dataclasses import dataclass

ARTICLE, LAMB_PAPER = "NVIDIA's article", "the LAMB paper"
_CORRECTION = "Bias Correction and Learning Rate Decay"


@dataclass(frozen=True)
class Published:
    """A claim of a source."""

    source: str
    place: str
    """Where it stands."""
    text: str
    """The claim, to follow the source's name and a colon."""
    results: tuple[str, ...]
    """What it says of the first of two arms: worse, better, same, or no worse (same, better); open: it does not say."""

    @property
    def on_two_arms(self) -> str:
        """For a verdict: who claims what."""
        says = {"same": "no difference", "same, better": "no worse", "open": "left open"}
        results = ", ".join(self.results)
        return f"{self.source[0].upper()}{self.source[1:]}: {says.get(results, results)}"


CLAIMS = {
    "article_pre_normalization": Published(
        ARTICLE,
        "The Importance of Gradient Pre-normalization",
        "without bringing the gradient of the whole model to norm 1 first, BERT pretraining at large batches does not "
        "converge as expected",
        ("worse",),
    ),
    "article_bias_correction": Published(
        ARTICLE, _CORRECTION, "without bias correction BERT pretraining diverges early", ("worse",)
    ),
    "article_weight_norm": Published(
        ARTICLE,
        "The Importance of Gradient Pre-normalization",
        "scaling the norm of the weights in the trust ratio is not needed for state-of-the-art results",
        ("same",),
    ),
    "article_decay_degree": Published(
        ARTICLE,
        f"{_CORRECTION}, Figure 3",
        "the degree of the polynomial decay makes no observable difference (F1 on SQuAD 1.1 of 91 to 91.5 % in both "
        "settings)",
        ("same",),
    ),
    "article_samples": Published(
        ARTICLE,
        "Table 2 and its note",
        "the LAMB results took twice the samples of AdamW for about the same scores; whether another recipe can do "
        "with fewer was not examined",
        ("open",),
    ),
    "article_large_batches": Published(
        ARTICLE,
        "Conclusion and Table 1",
        "with layer-wise adaptive rates larger batches lose no accuracy (64K and 32K in the two phases)",
        ("same", "better"),
    ),
    "lamb_paper_large_batches": Published(
        LAMB_PAPER,
        "abstract; rates in section 4",
        "LAMB takes batches of 32K without a loss of quality, its learning rate growing with the root of the batch",
        ("same", "better"),
    ),
    "lamb_paper_lars": Published(
        LAMB_PAPER, "abstract", "LARS does poorly on attention models such as BERT", ("worse",)
    ),
    "lamb_paper_bias_correction": Published(LAMB_PAPER, "appendix", "warm-up can replace bias correction", ("same",)),
    "nado_adam": Published(
        "Nado et al. (arXiv 2102.06356)",
        "abstract",
        "tuned, Adam matches or exceeds LAMB at large batches",
        ("same", "better"),
    ),
    "expected_worse": Published("our expectation", "from no source", "the first is worse", ("worse",)),
    "expected_same": Published("our expectation", "from no source", "no difference", ("same",)),
}
