"""Which of a dist folder's libraries: where one goes when it is compiled, which one this machine runs, and why not.

A slot is TARGET or TARGET:ARCH (see mlcrt.dist). The first library for a target takes TARGET, unless it is for another
system than the one it is compiled on; every other architecture gets a slot of its own. Compiling for the same
architecture again replaces its library.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from mlcrt.dist import Dist
from mlcrt.errors import MlcrtError
from mlcrt.targets import all_targets, parse_device
from mlcrt.targets.platforms import PLATFORMS, foreign, host_platform


def slot_for(targets: dict[str, Any], name: str, attributes: Any) -> str:
    """The slot for a library compiled with these attributes, next to those that `targets` (of the manifest) has."""
    taken = targets.get(name)
    own = f"{name}:{attributes.name}"
    if own in targets or getattr(attributes, "cross", False):
        return own
    return name if not isinstance(taken, dict) or taken.get("arch") == attributes.name else own


def slots_of(targets: dict[str, Any], name: str) -> list[str]:
    """The slots of a target."""
    return [slot for slot in targets if slot.partition(":")[0] == name]


def why_not(entry: dict, target: ModuleType, where: str = "") -> str | None:
    """Why this machine cannot run a library, or None: 'is for …', 'was compiled for …'. `where` names one of several
    devices of a target that tells them apart."""
    reason = foreign(entry)
    if reason is None:
        features = entry["features"]
        missing = target.missing_features(features, where) if where else target.missing_features(features)
        if missing:
            reason = f"was compiled for {entry['arch']} and this machine lacks {', '.join(missing)}"
    return reason


def pick(dist: Dist, device: str) -> str:
    """The slot to run on `device`: auto, a target, TARGET:ARCH for that very library, or a device of a target.

    Of several libraries for a target it is the one that asks most of this machine, or what the target's `rank` puts
    highest. MlcrtError if none can run here.
    """
    targets = dist.manifest["targets"]
    if device == "auto":
        for name, module in all_targets().items():
            if slots_of(targets, name) and module.probe().preferred:
                best = _best(dist, name, module)
                if best:
                    return best
        have = describe_slots(dist)
        raise MlcrtError(f"{dist.path} has no library that this machine can run (it has: {have}); run mlcrt compile")
    name, arch, is_device = parse_device(device)
    module = all_targets()[name]
    where = arch if is_device and hasattr(module, "names_device") else ""  # a target that tells its devices apart
    wanted = module.attributes(arch).name if arch and not is_device else None
    best = _best(dist, name, module, wanted, where)
    if best:
        return best
    slots = [s for s in slots_of(targets, name) if wanted in (None, _arch(targets[s]))]
    if not slots:
        return f"{name}:{wanted}" if wanted else name  # check_target says that it is not there
    reasons = [f"{dist.path / targets[s]['library']} {why_not(targets[s], module, where)}" for s in slots]
    chosen = f"{name}:{where}" if where else name
    probed = module.probe()
    remedy = f"compile it here with mlcrt compile {dist.path} --target {chosen}" if probed.available else probed.reason
    raise MlcrtError(f"{'; '.join(reasons)}; {remedy}")


def require_device(device: str) -> None:
    """MlcrtError unless this machine has what `device` names; asked before something is compiled only to be run."""
    if device == "auto":
        return
    name, where, is_device = parse_device(device)
    module = all_targets()[name]
    probed = module.probe()
    there = [str(found.get("id")) for found in probed.devices]
    reason = None if probed.available else probed.reason
    if reason is None and where.isdigit() and f"{name}:{where}" not in there and (where != "0" or name not in there):
        reason = f"there is {', '.join(there)}"
    if reason is None and where and not is_device:
        wanted = module.attributes(where)
        entry = {"arch": wanted.name, "features": list(wanted.features)}
        reason = why_not(entry | {"platform": getattr(wanted, "platform", host_platform())}, module)
        reason = reason and f"a library for it {reason}"
    if reason:
        raise MlcrtError(f"this machine has no {device}: {reason}; choose another --device, see mlcrt devices")


def has_library(dist: Dist, device: str) -> bool:
    """Whether `pick` finds one."""
    try:
        return pick(dist, device) in dist.manifest["targets"]
    except MlcrtError:
        return False


def describe_slots(dist: Dist) -> str:
    """The slots in a sentence, with the system of those that are for another; 'none'."""
    return ", ".join(_describe(slot, entry) for slot, entry in dist.manifest["targets"].items()) or "none"


def _best(dist: Dist, name: str, module: ModuleType, arch: str | None = None, where: str = "") -> str | None:
    """The runnable slot of a target with the best library; a damaged entry is left to check_target."""
    targets, rank = dist.manifest["targets"], getattr(module, "rank", len)
    usable = []
    for slot in slots_of(targets, name):
        entry = targets[slot]
        if arch not in (None, _arch(entry)):
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("features"), list):
            usable.append((-1000, slot))
        elif why_not(entry, module, where) is None:
            usable.append((rank(entry["features"]), slot))
    return max(usable, key=lambda pair: pair[0])[1] if usable else None


def _arch(entry: Any) -> str | None:
    return entry.get("arch") if isinstance(entry, dict) else None


def _describe(slot: str, entry: Any) -> str:
    known = isinstance(entry, dict) and foreign(entry)
    return f"{slot} for {PLATFORMS[entry['platform']].text}" if known and entry["platform"] in PLATFORMS else slot
