"""A user's file, which mypy checks in `tests/test_typing.py`. It is not run."""

from pathlib import Path

import keras
import numpy as np

import keras_rcl

model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
images, labels = np.zeros((4, 8, 8, 1), np.float32), np.arange(4)

attack = keras_rcl.PGD(epsilon="8/255", step_size=2 / 255, num_steps=20)
adversarial = keras_rcl.craft(attack, model, images, labels)
survival = keras_rcl.Evaluator(model, [keras_rcl.FGSM(epsilon="8/255"), keras_rcl.AutoPGD(epsilon=8 / 255)])(
    images, labels
)
accuracy: float = survival.clean_accuracy

method = keras_rcl.AT(augmentation="crop_flip", attack=attack)
experiment = keras_rcl.Experiment(method=method, dataset=keras_rcl.Dataset(name="digits"), seed=1)
fitted = keras_rcl.fit(experiment)
record, folder = keras_rcl.attack(fitted.saved_model, [attack], dataset={"name": "digits"})
verified, _ = keras_rcl.verify_model(Path("saved_models/digits-at"), [2 / 255])
claim = keras_rcl.Claim(robust_accuracy=0.6, epsilon="8/255")
audited = keras_rcl.audit(keras_rcl.Subject(logits=model), images, labels, claim)

encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras_rcl.UnitNorm()])
encoder.compile("adam", loss=keras_rcl.SupervisedContrastive(temperature=0.1))

keras_rcl.PDG(epsilon="8/255")  # type: ignore[attr-defined]
keras_rcl.PGD(num_stpes=20)  # type: ignore[call-arg]
keras_rcl.PGD(num_steps="many")  # type: ignore[arg-type]
keras_rcl.PGD(norm="l3")  # type: ignore[arg-type]
