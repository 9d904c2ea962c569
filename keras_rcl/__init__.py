"""keras_rcl: robust contrastive learning in Keras 3 on TensorFlow.

The public names, imported when they are first asked for, so that `import keras_rcl` costs nothing.
"""

import importlib

_HOMES = {
    "keras_rcl.workflows.attack": ("attack",),
    "keras_rcl.attacks": ("craft",),
    "keras_rcl.model_io.classifier": ("Classifier", "load_classifier"),
    "keras_rcl.model_io.encoder": ("Encoder", "load_encoder"),
    "keras_rcl.config": ("Experiment", "Evaluation"),
    "keras_rcl.evaluation.robustness": ("Evaluator", "Survival"),
    "keras_rcl.workflows.fit": ("fit",),
    "keras_rcl.model_io.export": ("export",),
    "keras_rcl.methods": ("AT", "Baseline", "CLAFS", "VARIANTS"),
    "keras_rcl.networks.two_headed": ("UnitNorm", "build_network"),
    "keras_rcl.objectives.classification": (
        "BoostedCrossEntropy",
        "CrossEntropy",
        "KLToClean",
        "boosted_cross_entropy",
        "cross_entropy",
        "kl_to_clean",
        "misclassified_kl",
    ),
    "keras_rcl.objectives.contrastive": (
        "MarginContrastive",
        "SupervisedContrastive",
        "collapse_value",
        "margin_contrastive",
        "supervised_contrastive",
    ),
    "keras_rcl.workflows.predict": ("predict",),
    "keras_rcl.vocabulary.attacks": (
        "BIM",
        "FAB",
        "FGSM",
        "PGD",
        "AutoAttack",
        "AutoPGD",
        "CarliniWagner",
        "Noise",
        "RayS",
        "Square",
    ),
    "keras_rcl.vocabulary.dataset": ("Dataset",),
    "keras_rcl.vocabulary.network": ("Network",),
    "keras_rcl.vocabulary.threat": ("ThreatModel",),
    "keras_rcl.errors": ("InvalidInputError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'keras_rcl' has no attribute {name!r}")
    if _HOME_OF[name].split(".")[1] not in ("config", "errors", "methods", "vocabulary"):
        from keras_rcl.runtime.tensorflow import start_tensorflow

        start_tensorflow()
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value  # so that a submodule of the same name cannot take its place
    return value


def __dir__():
    return __all__
