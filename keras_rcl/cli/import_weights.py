"""The command `import`."""

from pathlib import Path

import click

from keras_rcl.cli import options as shared
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.vocabulary.network import Architecture


@click.command("import", short_help="Write the weights of a PyTorch checkpoint as a SavedModel.")
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--architecture", type=click.Choice(Architecture.__args__), required=True, help="The network of the checkpoint."
)
@click.option(
    "--normalization",
    metavar="NAME",
    help="What the network expects of its images: none (pixels in [0, 1]), cifar10, cifar10-0.2, cifar100, imagenet or "
    "minus1to1, or mean,mean,mean,std,std,std. By default as in the checkpoint, or as its codebase always has it.",
)
@click.option("--key", help="The state dict to read, if the checkpoint holds several.")
@click.option("--dataset", help="The data set that the network classifies; it names the classes.")
@shared.data_dir_option
@click.option("--image-size", type=click.IntRange(8, 4096), help="The size of its images; 32 or 224 by default.")
@click.option("--name", help="The name of the export; that of the file by default.")
@shared.saved_models_option
@shared.overwrite_option("Replace an export of that name.")
def import_weights(checkpoints, architecture, dataset, data_dir, image_size, **options):
    """Write the weights of a PyTorch checkpoint or a .safetensors file as a SavedModel.

    PyTorch is not needed, and no code of the checkpoint is run. Give two files if encoder and classifier are apart.
    """
    start_tensorflow()
    from keras_rcl.workflows.import_weights import import_weights

    given = {"name": dataset, "data_dir": data_dir, "image_size": image_size}
    fields = {key: value for key, value in given.items() if value is not None}
    found = import_weights(checkpoints, architecture, dataset=fields, **options)
    key = f" of {found.key!r}" if found.key else ""
    click.echo(f"{found.num_tensors} tensors{key}, named as in {found.codebase}; every weight is filled")
    if found.others:
        click.echo(f"not read: {', '.join(found.others)}; choose with --key")
    if rest := [name for name in found.unread if not name.endswith("num_batches_tracked")]:
        click.echo(f"not read, as no forward pass uses them: {len(rest)} tensors such as {rest[0]}")
    numbers = [" ".join(f"{value:.4g}" for value in values) for values in (found.mean, found.std)]
    click.echo(
        f"images are pixels in [0, 1]; inside, mean {numbers[0]} and std {numbers[1]}"
        if found.mean
        else "images are pixels in [0, 1], without normalization inside"
    )
    click.echo(f"written to {found.path}")
