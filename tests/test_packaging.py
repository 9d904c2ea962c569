"""A wheel has what the package reads at run time."""

import configparser
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_data_file_of_the_package_is_package_data():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    package = ROOT / "keras_rcl"
    patterns = setup["options.package_data"]["keras_rcl"].split()
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    data = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert {path.suffix for path in data} >= {".yaml", ".html"}
    assert data <= packaged, sorted(map(str, data - packaged))
