"""The versions that are installed here, for an environment that must behave like this one."""

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# Each build of torch pins its CUDA libraries itself.
OF_TORCH = ("nvidia-", "cuda-", "triton")


def pinned(name: str) -> list[str]:
    """List what an installed distribution needs, directly or indirectly, without itself.

    Local parts of versions, as in torch 2.9.0+cpu, are left out, because no index has them.

    Returns:
        Sorted lines NAME==VERSION.
    """
    versions = {}
    seen = set()
    queue = [(canonicalize_name(name), "")]  # names with one of their extras, or none

    while queue:
        package, extra = queue.pop()
        if (package, extra) in seen or package.startswith(OF_TORCH):
            continue
        seen.add((package, extra))

        try:
            found = distribution(package)
        except PackageNotFoundError:
            continue  # some builds of a package do not need it; pip installs it where it is needed
        versions[package] = Version(found.version).public

        for text in found.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                queue += [(needed, wanted) for wanted in ("", *requirement.extras)]

    versions.pop(canonicalize_name(name), None)
    return sorted(f"{package}=={version}" for package, version in versions.items())
