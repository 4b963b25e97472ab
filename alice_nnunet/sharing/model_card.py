"""The model card of an exported encoder: README.md with the Hugging Face hub's front matter."""

from huggingface_hub import ModelCardData

from alice_nnunet.checkpoint import unfinished
from alice_nnunet.model.pretraining.registry import DEFAULT, METHODS
from alice_nnunet.networks.published.encoder import Published
from alice_nnunet.sharing.exported import CONFIG, MODEL, PLAN
from alice_nnunet.text import millimetres

NETWORKS = {"vit": "UNETR's ViT", "swin": "Swin UNETR's encoder", "nnformer": "nnFormer's encoder"}
COLLAPSED = 0.1  # alice-pretrain warns of a spread below this
TAGS = ["ct", "medical-imaging", "segmentation", "self-supervised-learning", "nnu-net", "monai"]
CITATION_ALICE = """\
@inproceedings{jiang2023alice,
  title     = {Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning
               in 3D Medical Image Analysis},
  author    = {Jiang, Yankai and Sun, Mingze and Guo, Heng and Bai, Xiaoyu and Yan, Ke and Lu, Le
               and Xu, Minfeng},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023}
}
"""
CITATION_NNUNET = """\
@article{isensee2021nnunet,
  title   = {nnU-Net: a self-configuring method for deep learning-based biomedical image
             segmentation},
  author  = {Isensee, Fabian and Jaeger, Paul F. and Kohl, Simon A. A. and Petersen, Jens
             and Maier-Hein, Klaus H.},
  journal = {Nature Methods},
  volume  = {18},
  pages   = {203--211},
  year    = {2021}
}"""


def model_card(content: dict, published: Published | None, reason: str, licence: str | None) -> str:
    """Markdown with front matter.

    Args:
        content: of config.json.
        published: of published_encoder, or None and the reason why there is no file.
        reason: see published.
        licence: of the weights, as the hub names it; None if none is stated.
    """
    front = ModelCardData(
        license=licence,
        library_name="alice-nnunet",
        pipeline_tag="image-feature-extraction",
        tags=TAGS,
    )
    config = content["config"]
    network = NETWORKS[config["encoder"]]
    method = config.get("method_name", DEFAULT)
    reference = METHODS[method].title
    short = reference.partition(" (")[0]
    title = f"{network}, pretrained on CT with {short} ({config['preset']} preset)"

    sections = [
        f"---\n{front.to_yaml()}\n---\n# {title}",
        usage_section(reference),
        data_section(content),
        network_section(content),
        metrics_section(content["metrics"], method),
        published_section(published, reason),
        licence_section(licence),
        citation_section(method),
    ]
    return "\n\n".join(sections) + "\n"


def citation_section(method: str) -> str:
    """What to cite. Of other methods than Alice, the registry names the paper."""
    lines = ["## Citation", ""]
    if method != DEFAULT:
        lines += [f"The method is {METHODS[method].title}.", ""]
    of_method = CITATION_ALICE if method == DEFAULT else ""
    return "\n".join([*lines, f"```bibtex\n{of_method}{CITATION_NNUNET}\n```"])


def usage_section(reference: str) -> str:
    """What the encoder is for.

    Args:
        reference: The method's name and paper.
    """
    return f"""\
An encoder for segmentation of 3D CT, pretrained without labels by {reference}
with alice-nnunet, in the conventions of [nnU-Net v2](https://github.com/MIC-DKFZ/nnUNet). It does
not segment by itself: it is a starting point for fine-tuning.

## Use

FOLDER is this folder, or `owner/name` of its repository on the Hugging Face hub; 7 is the number of
a labeled nnU-Net dataset:

```sh
eval "$(alice-env)"
alice-plan -d 7 -weights FOLDER
nnUNetv2_preprocess -d 7 -plans_name AlicePlans -c 3d_fullres
nnUNetv2_train 7 3d_fullres 0 -tr AliceTrainer -p AlicePlans
```

`alice-plan` matches orientation, spacing and intensities, and refuses data that it cannot match.
`{MODEL}` contains the tensors, `{CONFIG}` their description and SHA-256, `{PLAN}` the same for
tools that read nnssl's AdaptationPlan."""


def table(rows: list[tuple]) -> list[str]:
    """Lines of a Markdown table of two columns without names."""
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def data_section(content: dict) -> str:
    """What the encoder has seen, and how an image must be shown to it."""
    data = content["data"]
    axes = ", ".join(data["axis_order"])
    channels = [
        (f"channel {index}: {channel['name']}", intensities(channel))
        for index, channel in enumerate(data["channels"])
    ]

    rows = [
        ("dataset", f"{data['dataset']}, {data['number_of_cases']} volumes without labels"),
        (
            "orientation of arrays",
            f"{data['orientation']}, whatever the files have (nnU-Net's {data['reader']})",
        ),
        ("axes of arrays", f"{axes} after the channel"),
        ("spacing", f"{millimetres(data['spacing'])} ({axes})"),
        *channels,
        ("SHA-256 of the list of cases", data["case_list_sha256"]),
    ]
    return "\n".join(["## Data", "", *table(rows)])


def intensities(channel: dict) -> str:
    """How the values of a channel are shown to the encoder."""
    if channel["window"] is None:
        return channel["scheme"]
    low, high = channel["window"]
    return f"clipped to {low:g}..{high:g} HU, then mapped to 0..1"


def network_section(content: dict) -> str:
    """Encoder, its arguments and the settings of the pretraining."""
    config = content["config"]
    settings = ("iterations", "batch_size", "lr", "weight_decay", "matcher", "seed")

    rows = [
        ("encoder", config["encoder"]),
        ("preset", config["preset"]),
        *config["encoder_arguments"].items(),
        ("steps done", steps_done(content)),
        *((name, config[name]) for name in settings if name in config),
        ("alice-nnunet", content["alice_nnunet"]),
    ]
    lines = ["## Network and pretraining", "", *table(rows)]
    return "\n".join([*lines, "", f"Every setting is in `{CONFIG}`."])


def steps_done(content: dict) -> str:
    """How many, and where the pretraining has not ended, of how many."""
    progress = unfinished(content)
    return f"{progress} (unfinished)" if progress else str(content["step"])


def metrics_section(metrics: dict, method: str) -> str:
    """The last values of the pretraining's curves."""
    title = "## Metrics of the pretraining"
    if not metrics:
        return f"{title}\n\nThe checkpoint contains none."

    of_alice = " l_r, l_dv and l_st are Eqs. 1, 2 and 5 of the paper;" if method == DEFAULT else ""
    lines = [
        title,
        "",
        f"The last value of each curve.{of_alice}",
        "validation is on held-out volumes. None of these says how well a fine-tuned network",
        "segments.",
        "",
    ]

    collapsed = [
        name
        for name, entry in metrics.items()
        if name.startswith("spread") and entry["value"] < COLLAPSED
    ]
    if collapsed:
        names = " and ".join(collapsed)
        lines += [f"**{names} ended under {COLLAPSED}: these features may have collapsed.**", ""]

    lines += rank_lines(metrics)
    lines += ["| | last value | at step |", "|---|---|---|"]
    for name, entry in metrics.items():
        lines.append(f"| {name} | {entry['value']:.4g} | {entry['step']} |")
    return "\n".join(lines)


def rank_lines(metrics: dict) -> list[str]:
    """A paragraph on the effective rank; none for runs of version 0.1, which did not measure it."""
    tokens = metrics.get("rank V")
    if tokens is None:
        return []
    return [
        f"The encoder's visible tokens (V) have an effective rank of {tokens['value']:.1f}: they "
        "vary along",
        "about as many directions. `rank` below is that of each kind of features, "
        "exp(-sum p log p) over",
        "the shares p of the eigenvalues of their covariance. One near 1 is a collapse, whatever "
        "the spread.",
        "",
    ]


def published_section(published: Published | None, reason: str) -> str:
    """How to load the tensors without this package."""
    title = "## Without alice-nnunet"
    if published is None:
        return f"{title}\n\nThere is no file for another library: {reason}."

    return (
        f"{title}\n\n`{published.file}` contains the same tensors with the names of the published "
        f"network. Show it images as described in the table above.\n\n"
        f"```python\n{published.code}\n```\n\n{published.remark}"
    )


def licence_section(licence: str | None) -> str:
    if licence:
        return f"## Licence\n\n{licence}, for the weights."
    return "## Licence\n\nThe exporter states no licence for these weights."
