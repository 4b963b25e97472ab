"""The versions that are installed here, for an environment that must behave like this one."""

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

OF_TORCH = ("nvidia-", "cuda-", "triton")


def pinned(name: str) -> list[str]:
    """What the installed distribution called name needs, directly or not, itself left out: sorted lines NAME==VERSION.

    Local parts of versions (torch 2.9.0+cpu) are left out, since no index has them, and so are the CUDA libraries, which
    each build of torch pins for itself.
    """
    seen, queue = set(), [(canonicalize_name(name), "")]
    versions = {}
    while queue:
        package, extra = queue.pop()
        if (package, extra) in seen or package.startswith(OF_TORCH):
            continue
        seen.add((package, extra))
        try:
            found = distribution(package)
        except PackageNotFoundError:
            continue  # another build of a package needs other ones; pip sees to what it installs
        versions[package] = Version(found.version).public
        for text in found.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                queue += [
                    (canonicalize_name(requirement.name), wanted)
                    for wanted in ("", *requirement.extras)
                ]
    return sorted(
        f"{package}=={version}"
        for package, version in versions.items()
        if package != canonicalize_name(name)
    )
