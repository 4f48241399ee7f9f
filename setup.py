"""Hands the packaging facts of settings.ini to setuptools; the version stands in `deploy_assist/__init__.py`."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
facts = config["DEFAULT"]
lib = facts["lib_name"]


def lines(key):
    return [line.strip() for line in facts[key].splitlines() if line.strip()]


def extras():
    pairs = (line.split("=", 1) for line in lines("extras"))
    return {name.strip(): packages.split() for name, packages in pairs}


version = re.search(r'^__version__ = "(.+)"', (here / lib / "__init__.py").read_text(encoding="utf-8"), re.M)[1]

setup(
    name=lib,
    version=version,
    description=facts["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=facts["author"],
    license=facts["license"],
    license_files=["LICENSE"],
    keywords=facts["keywords"].split(),
    python_requires=f">={facts['min_python']}",
    packages=find_namespace_packages(include=[lib, f"{lib}.*"]),
    package_data={lib: ["templates/*", "templates/**/*", "py.typed"]},
    install_requires=lines("requirements"),
    extras_require=extras(),
    entry_points={"console_scripts": lines("console_scripts")},
    zip_safe=False,
)
