"""The command `predict`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.report.tables import text_table
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import json_text


@click.command(short_help="Classify images.")
@click.argument("model", type=shared.FOLDER)
@click.argument("images", nargs=-1, required=True, type=shared.FOLDER)
@click.option("--resize", is_flag=True, help="Resize images that do not have the model's size.")
@shared.foreign_model_options
@shared.json_option("the predictions")
def predict(model, images, as_json, **options):
    """Classify image files, folders of them with their sub-folders, or .npy/.npz arrays."""
    start_tensorflow()
    from keras_rcl.workflows.predict import predict

    entries = predict(model, images, say=lambda line: click.echo(f"note: {line}", err=True), **options)
    if as_json:
        click.echo(json_text(entries))
        return
    rows = [
        [entry["image"], entry["class_name"], f"{entry['probability']:.4f}"]
        if entry["class"] is not None
        else [entry["image"], "not finite", ""]
        for entry in entries
    ]
    click.echo(text_table(["image", "class", "probability"], rows))
