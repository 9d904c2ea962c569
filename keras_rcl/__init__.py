"""keras_rcl: robust contrastive learning in Keras 3 on TensorFlow.

Public names are imported on first use, so that `import keras_rcl` is fast. Type checkers and editors read
`__init__.pyi`.
"""

import importlib
from typing import Any

_MODULES = {
    "keras_rcl.bounds.worst_case": ("worst_case_margins",),
    "keras_rcl.config": ("Evaluation", "Experiment"),
    "keras_rcl.errors": ("InvalidInputError",),
    "keras_rcl.evaluation.audit": ("Audit", "Subject"),
    "keras_rcl.evaluation.certification": ("Certification", "Certifier"),
    "keras_rcl.evaluation.robustness": ("Evaluator", "Survival"),
    "keras_rcl.methods": (
        "AT",
        "ATSCL",
        "CLAFS",
        "MART",
        "MTLIBP",
        "PGDCE",
        "SABR",
        "SCCE",
        "SCL",
        "TRADES",
        "TRADESSCL",
        "VARIANTS",
        "AdversarialBatch",
        "AdversarialContrastive",
        "Baseline",
        "Certified",
        "CertifiedContrastive",
        "FastAT",
        "MarginSCL",
        "PGDBoth",
        "PGDSupCon",
        "RefinedSCL",
        "RoCLAT",
        "SCBoth",
        "SCSupCon",
        "SCSupConRetrained",
        "SingleTraining",
        "SmoothAdv",
        "SmoothedTraining",
        "SupConLinear",
    ),
    "keras_rcl.model_io.classifier": ("Classifier", "load_classifier"),
    "keras_rcl.model_io.encoder": ("Encoder", "load_encoder"),
    "keras_rcl.model_io.export": ("export",),
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
        "EuclideanSupCon",
        "MarginContrastive",
        "PrototypeContrastive",
        "SupervisedContrastive",
        "collapse_value",
        "euclidean_supcon",
        "margin_contrastive",
        "prototype_contrastive",
        "supervised_contrastive",
    ),
    "keras_rcl.vocabulary.attacks": (
        "AttackBase",
        "AutoAttack",
        "AutoPGD",
        "BIM",
        "CarliniWagner",
        "Corruptions",
        "DDN",
        "DeepFool",
        "Embedding",
        "FAB",
        "FGSM",
        "FMN",
        "HopSkipJump",
        "JointAttack",
        "MIFGSM",
        "Noise",
        "PGD",
        "RayS",
        "Refreshed",
        "SmoothedAttack",
        "Spatial",
        "Square",
        "Stored",
        "SupConAttack",
        "Transfer",
    ),
    "keras_rcl.vocabulary.claim": ("AuditBudget", "Claim"),
    "keras_rcl.vocabulary.dataset": ("Dataset",),
    "keras_rcl.vocabulary.network": ("Network",),
    "keras_rcl.vocabulary.registry": ("register_attack", "register_encoder", "register_loss", "register_method"),
    "keras_rcl.vocabulary.spec": ("spec",),
    "keras_rcl.vocabulary.threat": ("ThreatModel",),
    "keras_rcl.workflows.attack": ("attack",),
    "keras_rcl.workflows.audit": ("audit_model",),
    "keras_rcl.workflows.certify": ("SmoothingReport", "certify", "certify_model"),
    "keras_rcl.workflows.craft_dataset": ("craft_dataset",),
    "keras_rcl.workflows.evaluate": ("RobustnessReport", "evaluate"),
    "keras_rcl.workflows.fit": ("fit",),
    "keras_rcl.workflows.import_weights": ("Imported", "import_weights"),
    "keras_rcl.workflows.own_model": ("audit", "craft", "verify"),
    "keras_rcl.workflows.predict": ("predict",),
    "keras_rcl.workflows.robust_model": ("RobustModel",),
    "keras_rcl.workflows.robust_validation": ("RobustValidation",),
    "keras_rcl.workflows.suggest_config": ("suggest_config",),
    "keras_rcl.workflows.train": ("train",),
    "keras_rcl.workflows.verify": ("verify_model",),
    "keras_rcl.workflows.verify_properties": ("PropertyAnswer", "verify_instances", "verify_property"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_LIGHT = ("config", "errors", "methods", "vocabulary")
"""Parts of the package that import no TensorFlow."""

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'keras_rcl' has no attribute {name!r}")
    module = _MODULE_OF[name]
    if module.split(".")[1] not in _LIGHT:
        from keras_rcl.runtime.tensorflow import start_tensorflow

        start_tensorflow(program=False)
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value  # The import may have set a submodule of the same name.
    return value


def __dir__() -> list[str]:
    return __all__
