"""The model card of an exported encoder: README.md with the front matter that the Hugging Face hub reads."""

from huggingface_hub import ModelCardData

from alice_nnunet.finetuning.compatibility import millimetres
from alice_nnunet.sharing.exported import CONFIG, MODEL, PLAN
from alice_nnunet.networks.published.encoder import Published

NETWORKS = {"vit": "UNETR's ViT", "swin": "Swin UNETR's encoder", "nnformer": "nnFormer's encoder"}
COLLAPSED = 0.1  # the spread under which alice-pretrain warns
TAGS = ["ct", "medical-imaging", "segmentation", "self-supervised-learning", "nnu-net", "monai"]
CITATION = """\
@inproceedings{jiang2023alice,
  title     = {Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D Medical Image Analysis},
  author    = {Jiang, Yankai and Sun, Mingze and Guo, Heng and Bai, Xiaoyu and Yan, Ke and Lu, Le and Xu, Minfeng},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023}
}
@article{isensee2021nnunet,
  title   = {nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation},
  author  = {Isensee, Fabian and Jaeger, Paul F. and Kohl, Simon A. A. and Petersen, Jens and Maier-Hein, Klaus H.},
  journal = {Nature Methods},
  volume  = {18},
  pages   = {203--211},
  year    = {2021}
}"""


def model_card(content: dict, published: Published | None, reason: str, licence: str | None) -> str:
    """Markdown with front matter. content: of config.json. published, reason: of published_encoder.

    licence: as the hub names licences, of the weights, or None where whoever exports them states none.
    """
    front = ModelCardData(
        license=licence,
        library_name="alice-nnunet",
        pipeline_tag="image-feature-extraction",
        tags=TAGS,
    )
    config = content["config"]
    title = (
        f"{NETWORKS[config['encoder']]}, pretrained on CT with Alice ({config['preset']} preset)"
    )
    sections = [
        f"---\n{front.to_yaml()}\n---\n# {title}",
        use(),
        data_section(content),
        network_section(content),
        metrics_section(content["metrics"]),
        published_section(published, reason),
        licence_section(licence),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def use() -> str:
    return f"""\
An encoder for segmentation of 3D CT, pretrained without labels by the method of *Alice* (Jiang et al., ICCV 2023) in
[nnU-Net v2](https://github.com/MIC-DKFZ/nnUNet)'s conventions with alice-nnunet. It segments nothing by itself: it is where a
fine-tuning starts.

## Use

FOLDER is this folder, or `owner/name` of its repository on the Hugging Face hub, 7 the number of a labeled nnU-Net dataset:

```sh
eval "$(alice-env)"
alice-plan -d 7 -weights FOLDER
nnUNetv2_preprocess -d 7 -plans_name AlicePlans -c 3d_fullres
nnUNetv2_train 7 3d_fullres 0 -tr AliceTrainer -p AlicePlans
```

`alice-plan` sees to orientation, spacing and intensities, and refuses data that it cannot match. `{MODEL}` holds the tensors,
`{CONFIG}` their description and SHA-256, `{PLAN}` the same for tools that read nnssl's AdaptationPlan."""


def data_section(content: dict) -> str:
    """What the encoder has seen, and how an image must be shown to it."""
    data = content["data"]
    channels = [
        f"| channel {index}: {channel['name']} | {intensities(channel)} |"
        for index, channel in enumerate(data["channels"])
    ]
    return "\n".join(
        [
            "## Data",
            "",
            "| | |",
            "|---|---|",
            f"| dataset | {data['dataset']}, {data['number_of_cases']} volumes without labels |",
            f"| orientation of arrays | {data['orientation']}, whatever the files have (nnU-Net's {data['reader']}) |",
            f"| axes of arrays | {', '.join(data['axis_order'])} after the channel |",
            f"| spacing | {millimetres(data['spacing'])} ({', '.join(data['axis_order'])}) |",
            *channels,
            f"| SHA-256 of the list of cases | {data['case_list_sha256']} |",
        ]
    )


def intensities(channel: dict) -> str:
    """How a channel's values become the encoder's."""
    if channel["window"] is None:
        return channel["scheme"]
    low, high = channel["window"]
    return f"clipped to {low:g}..{high:g} HU, then mapped to 0..1"


def network_section(content: dict) -> str:
    """Encoder, arguments and the settings of the pretraining."""
    config = content["config"]
    arguments = [f"| {name} | {value} |" for name, value in config["encoder_arguments"].items()]
    run = [
        f"| {name} | {config[name]} |"
        for name in ("iterations", "batch_size", "lr", "weight_decay", "matcher", "seed")
        if name in config
    ]
    return "\n".join(
        [
            "## Network and pretraining",
            "",
            "| | |",
            "|---|---|",
            f"| encoder | {config['encoder']} |",
            f"| preset | {config['preset']} |",
            *arguments,
            f"| steps done | {content['step']} |",
            *run,
            f"| alice-nnunet | {content['alice_nnunet']} |",
            "",
            f"Every setting is in `{CONFIG}`.",
        ]
    )


def metrics_section(metrics: dict) -> str:
    """The last values of the pretraining's curves."""
    if not metrics:
        return "## Metrics of the pretraining\n\nThe checkpoint holds none."
    low = [
        name
        for name, entry in metrics.items()
        if name.startswith("spread") and entry["value"] < COLLAPSED
    ]
    warning = (
        [f"**{' and '.join(low)} ended under {COLLAPSED}: these features may have collapsed.**", ""]
        if low
        else []
    )
    rows = [
        f"| {name} | {entry['value']:.4g} | {entry['step']} |" for name, entry in metrics.items()
    ]
    return "\n".join(
        [
            "## Metrics of the pretraining",
            "",
            "The last value of each curve. l_r, l_dv and l_st are Eqs. 1, 2 and 5 of the paper; "
            "validation is on held-out volumes. None of this says how well a fine-tuned network segments.",
            "",
            *warning,
            "| | last value | at step |",
            "|---|---|---|",
            *rows,
        ]
    )


def published_section(published: Published | None, reason: str) -> str:
    """How to load the tensors without this package."""
    if published is None:
        return f"## Without alice-nnunet\n\nThere is no file for another library: {reason}."
    return (
        f"## Without alice-nnunet\n\n`{published.file}` holds the same tensors by the published network's names. Show it images as the "
        f"table above says.\n\n```python\n{published.code}\n```\n\n{published.remark}"
    )


def licence_section(licence: str | None) -> str:
    return "## Licence\n\n" + (
        f"{licence}, for the weights."
        if licence
        else "Whoever exported these weights states no licence for them."
    )
