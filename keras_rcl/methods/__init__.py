"""The table of variants: SPEC's names -> recipes. A recipe holds a paper's hyper-parameters and its `phases()`."""

from typing import Annotated, Union, get_args

from pydantic import Field

from keras_rcl.methods.at import AT
from keras_rcl.methods.baseline import Baseline
from keras_rcl.methods.clafs import CLAFS
from keras_rcl.methods.trades import TRADES

Method = Annotated[Union[Baseline, AT, TRADES, CLAFS], Field(discriminator="name")]
"""Any variant; the field `name` says which."""

VARIANTS = {cls.name: cls for cls in get_args(get_args(Method)[0])}
