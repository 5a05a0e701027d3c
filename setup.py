"""What pyproject.toml cannot say: packages are found, and two of them are installed under names of their own.

OpenAI's evals is a package too, and anybody's demo. Both folders import their modules relatively, so that they
work as ``evals`` and ``demo`` in the checkout, and as ``arrol_evals`` and ``arrol_demo`` where they are installed.
"""

from setuptools import find_packages, setup

FOLDERS = {"arrol_tts": "arrol_tts", "arrol_train": "arrol_train", "arrol_evals": "evals", "arrol_demo": "demo"}

setup(
    package_dir=FOLDERS,
    packages=[
        name.replace(folder, package, 1)
        for package, folder in FOLDERS.items()
        for name in find_packages(include=[folder, f"{folder}.*"])
    ],
)
