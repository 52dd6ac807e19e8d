"""The image is built from files whose hashes are known, and CI from actions whose commits are."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[2]
LOCKS = {
    "requirements.lock": ("postgres", "kafka"),
    "requirements-build.lock": (),
}
PLATFORMS = [
    {"sys_platform": "linux", "platform_machine": machine, "platform_python_implementation": "CPython"}
    for machine in ("x86_64", "aarch64")
]


def project() -> Any:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """What a lock file pins, and how many hashes it has of it."""
    pinned: dict[str, tuple[Requirement, int]] = {}
    for entry in re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", (CHECKOUT / name).read_text(), flags=re.M)):
        requirement, *hashes = re.split(r"\s*\\\n\s*", entry.strip())
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in hashes), entry
        read = Requirement(requirement)
        pinned[canonicalize_name(read.name)] = read, len(hashes)
    return pinned


def wanted(name: str) -> list[Requirement]:
    said = project()
    if name == "requirements-build.lock":
        assert said["dependency-groups"]["build"] == said["build-system"]["requires"]
        return [Requirement(text) for text in said["build-system"]["requires"]]
    extras = said["project"]["optional-dependencies"]
    chosen = [text for extra in LOCKS[name] for text in extras[extra]]
    return [Requirement(text) for text in [*said["project"]["dependencies"], *chosen]]


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_satisfies_the_project_on_every_platform_of_the_image(name: str) -> None:
    pinned = locked(name)
    for requirement in wanted(name):
        found, hashes = pinned[canonicalize_name(requirement.name)]
        (version,) = [specifier.version for specifier in found.specifier if specifier.operator == "=="]
        assert requirement.specifier.contains(version), f"{found}: run `make lock`"
        assert hashes >= 1
        for platform in PLATFORMS:
            assert found.marker is None or found.marker.evaluate(platform), found


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_names_no_index_and_everything_in_it_has_a_hash(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    assert "://" not in text
    assert set(re.findall(r"--[a-z-]+", text)) == {"--hash"}
    assert all(hashes for _, hashes in locked(name).values())


def test_the_image_installs_nothing_without_a_hash() -> None:
    text = re.sub(r"\\\n", " ", (CHECKOUT / "Dockerfile").read_text())
    installs = re.findall(r"pip install (.*)", text)
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    (wheel,) = re.findall(r"pip wheel (.*)", text)
    assert {"--no-deps", "--no-build-isolation"} <= set(wheel.split())
    context = (CHECKOUT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in LOCKS} <= set(context)


@pytest.mark.parametrize("path", sorted((CHECKOUT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_actions_are_named_by_their_commit(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    used = [step["uses"] for job in jobs for step in job["steps"] if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name)] == []
