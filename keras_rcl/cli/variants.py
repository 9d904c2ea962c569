"""The command `variants`."""

import dataclasses

import click

from keras_rcl.cli import options as shared
from keras_rcl.methods import known_variants
from keras_rcl.report.tables import phase_table
from keras_rcl.storage.atomic import json_text


@click.command(short_help="List the variants and their phases.")
@shared.json_option("the phases")
def variants(as_json):
    """List the variants: what each one is, and its phases."""
    variants = known_variants()
    if as_json:
        listed = {name: [dataclasses.asdict(phase) for phase in cls().phases()] for name, cls in variants.items()}
        click.echo(json_text(listed))
        return
    for name, cls in variants.items():
        click.echo(f"{name}: {(cls.__doc__ or name).splitlines()[0]}\n{phase_table(cls().phases(), '  ')}\n")
