"""Beside pyproject.toml: conf/ lies beside the package in a clone, and inside it in a wheel, where `mimicvideo/shipped.py` finds it."""

from setuptools import find_namespace_packages, setup

setup(packages=[*find_namespace_packages(include=["mimicvideo*"]), "mimicvideo.conf"], package_dir={"mimicvideo.conf": "conf"})
