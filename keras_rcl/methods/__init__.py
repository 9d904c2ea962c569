"""The table of variants. A method holds the hyper-parameters of a paper and turns them into `phases()`."""

from typing import Annotated, Union, get_args

from pydantic import Field

from keras_rcl.methods.adversarial import AdversarialBatch
from keras_rcl.methods.adversarial_contrastive import AdversarialContrastive
from keras_rcl.methods.at import AT
from keras_rcl.methods.at_scl import ATSCL, TRADESSCL
from keras_rcl.methods.baseline import Baseline
from keras_rcl.methods.certified import MTLIBP, Certified, CertifiedContrastive
from keras_rcl.methods.clafs import CLAFS
from keras_rcl.methods.fast_at import FastAT
from keras_rcl.methods.landsman import PGDCE, SCCE, PGDBoth, PGDSupCon, SCBoth, SCSupCon, SCSupConRetrained
from keras_rcl.methods.mart import MART
from keras_rcl.methods.rocl import RoCLAT
from keras_rcl.methods.scl import SCL, MarginSCL, RefinedSCL
from keras_rcl.methods.single_training import SingleTraining
from keras_rcl.methods.supcon_linear import SupConLinear
from keras_rcl.methods.trades import TRADES

Method = Annotated[
    Union[
        Baseline,
        SCL,
        RefinedSCL,
        MarginSCL,
        SupConLinear,
        SingleTraining,
        AT,
        FastAT,
        TRADES,
        MART,
        ATSCL,
        TRADESSCL,
        RoCLAT,
        CLAFS,
        PGDCE,
        PGDSupCon,
        PGDBoth,
        SCCE,
        SCSupCon,
        SCBoth,
        SCSupConRetrained,
        AdversarialBatch,
        AdversarialContrastive,
        Certified,
        CertifiedContrastive,
        MTLIBP,
    ],
    Field(discriminator="name"),
]
"""Any variant; the field `name` says which."""

VARIANTS = {cls.name: cls for cls in get_args(get_args(Method)[0])}
