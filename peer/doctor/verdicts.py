"""From facts to findings. Pure: no clock, socket, file or torch in here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from configs.rungs import payload_bytes
from peer.doctor.facts import Api, Bootstrap, Device, Disk, Drivers, Model, Names, Port, Speed, Torch
from peer.doctor.finding import Finding, fail, ok, skipped, warn
from peer.rounds.ladder import ROUND_SHARE, choose
from peer.terminal.quantities import count, duration, link_rate, size

TORCH_PAGE = "https://pytorch.org/get-started/locally"
GIB = 1 << 30
MAX_SKEW_SECONDS = 3.0  # hivemind's DHT refuses more
FLOOR_BYTES = 1_000_000_000  # that a machine needs beside a run's own files


# --- this machine -----------------------------------------------------------------------------------------------------


def about_gpu(torch: Torch, drivers: Drivers, device: Device) -> Finding:
    """The device that `join` would take, and whether a GPU lies idle for want of a driver or of another torch."""
    if device.problem:
        return fail("gpu", device.problem, _gpu_cure(torch, drivers) or "use --device cpu")
    if device.kind != "cpu":
        return ok("gpu", f"{device.description}, {device.precision}, torch {torch.version}")
    if cure := _gpu_cure(torch, drivers):
        cards = f"{drivers.nvidia_cards or drivers.amd_cards} GPU(s) here, but torch cannot use them"
        return warn("gpu", f"{cards}; it would train on the CPU", cure)
    return ok("gpu", f"no GPU; trains on the CPU: {device.description}, {device.precision}, torch {torch.version}")


def _gpu_cure(torch: Torch, drivers: Drivers) -> str:
    """What makes the machine's GPU usable; empty if there is none, or nothing known to be wrong."""
    if torch.cuda_works:
        return ""
    if drivers.nvidia_cards and not drivers.nvidia_driver:
        return "install NVIDIA's driver and restart (in Docker: the NVIDIA Container Toolkit, and --gpus all)"
    if drivers.nvidia_cards and not torch.cuda:
        return f"torch {torch.version} is a build without CUDA: install one for CUDA, see {TORCH_PAGE}"
    if drivers.nvidia_cards and _older(drivers.cuda_of_driver, torch.cuda):
        return (
            f"the driver ({drivers.nvidia_driver}) runs CUDA up to {drivers.cuda_of_driver}, torch wants {torch.cuda}: "
            f"update the driver, or install a torch for CUDA {drivers.cuda_of_driver}, see {TORCH_PAGE}"
        )
    if drivers.nvidia_cards:
        return "restart the machine; if CUDA_VISIBLE_DEVICES is set, unset it"
    if drivers.amd_cards and not torch.rocm and not torch.cuda:
        return f"for an AMD GPU with ROCm install torch's ROCm build, see {TORCH_PAGE}; others train on the CPU"
    return ""


def _older(version: str, than: str) -> bool:
    def key(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part.isdecimal()]

    return bool(version) and key(version)[:1] < key(than)[:1]  # within a major version any minor one runs


def device_bytes(model: Model, micro_batch: int, precision: str) -> int:
    """Weights, gradients and AdamW's two moments in fp32, and what a micro-batch keeps for its backward pass.

    Activations after Korthikanti et al. (2022), 34 bytes per token, layer and unit of width with 16 bits; the logits
    and their gradient in fp32. An estimate: `join` measures.
    """
    wide = 1 if precision in ("bf16", "fp16") else 2
    tokens = micro_batch * model.sequence_length
    return 16 * model.parameters + tokens * (34 * wide * model.layers * model.width + 8 * model.vocabulary)


def about_memory(model: Model, device: Device) -> Finding:
    """The largest micro-batch that should fit, in powers of two."""
    fits = [
        size_
        for size_ in (1 << power for power in range(11))
        if size_ <= model.batch_sequences and device_bytes(model, size_, device.precision) <= 0.9 * device.memory_bytes
    ]
    least = device_bytes(model, 1, device.precision)
    have = f"{device.memory_bytes / GIB:.1f} GB" + (" (device.memory_gb in settings.toml)" if device.limited else "")
    if not fits:
        cure = "raise device.memory_gb" if device.limited else "take a larger device, or --device cpu if that is larger"
        return fail(
            "memory",
            f"{count(model.parameters)} parameters need {least / GIB:.1f} GB, one sequence at a time; there are {have}",
            f"{cure}; or join a run with a smaller model",
        )
    rest = "" if fits[-1] >= model.batch_sequences else f"; {2 * fits[-1]} would not fit"
    return ok(
        "memory",
        f"{count(model.parameters)} parameters fit with micro-batches of {fits[-1]} of {model.batch_sequences}"
        f" sequences: {device_bytes(model, fits[-1], device.precision) / GIB:.1f} of {have}{rest}",
    )


def about_disk(disk: Disk, model: Model | None, cache_bytes: int) -> Finding:
    """States, payloads, error feedback and optimizer must fit; so should training data, up to the owner's cap."""
    if disk.problem:
        return fail(
            "disk", f"{disk.folder}: {disk.problem}", "choose another folder with --dir, or mend its permissions"
        )
    state = 4 * model.parameters * (2 if model.momentum else 1) if model else 0
    own = FLOOR_BYTES // 4 + (12 * model.parameters if model else 0)
    kept = model.kept_states * state + 32 * model.payload_bytes if model else 0
    have = f"{size(disk.free_bytes)} free at {disk.folder}"
    if disk.free_bytes < own + kept:
        return fail(
            "disk", f"{have}, {size(own + kept)} needed", "make room, or choose a folder on another disk with --dir"
        )
    if disk.free_bytes < own + cache_bytes:
        return warn(
            "disk",
            f"{have}: enough for the run ({size(own + kept)}), not for all the training data that it may keep",
            f"make room, or set disk.cache_gb in settings.toml to {(disk.free_bytes - own) / 1e9:.1f} or less",
        )
    return ok("disk", f"{have}, {size(own + max(kept, cache_bytes))} needed at most")


def about_port(port: Port) -> Finding:
    if not port.number:
        return ok("port", "any free one: no port is set")
    if port.in_use_by is None:
        return ok("port", f"{port.number} is free")
    return fail(
        "port", f"{port.number} is in use by {port.in_use_by}", "stop that program, or choose another port with --port"
    )


def about_manners(reason: str) -> Finding:
    if reason:
        return warn("manners", f"it would not train now: {reason}", "change settings.toml, or wait")
    return ok("manners", "it would train now, as far as the owner's settings go")


# --- the way to the swarm ---------------------------------------------------------------------------------------------


def about_names(names: Names) -> Finding:
    if names.failed:
        name, reason = next(iter(names.failed.items()))
        return fail(
            "dns",
            f"{name} is not found ({reason})",
            "check the network and its name server (try `ping` with that name); the coordinator may have moved: ask for"
            " a new ticket",
        )
    if not names.resolved:
        return ok("dns", "not needed: the ticket has addresses, no names")
    return ok("dns", ", ".join(f"{name} is {', '.join(found[:2])}" for name, found in names.resolved.items()))


def about_network(ipv4: bool, ipv6: bool) -> Finding:
    if not (ipv4 or ipv6):
        return warn(
            "network",
            "no way to the internet, over IPv4 or IPv6",
            "plug in the cable or connect the wireless; a swarm on this machine or in this network needs none",
        )
    return ok("network", "IPv4 and IPv6" if ipv4 and ipv6 else "IPv4 only" if ipv4 else "IPv6 only")


def about_api(api: Api, own_version: str) -> Finding:
    if api.other_run:
        return fail(
            "coordinator",
            f"{api.address} serves another run than the ticket's",
            "ask the organiser for the present ticket",
        )
    if api.problem:
        return fail(
            "coordinator",
            f"no answer at {', '.join(api.tried) or 'any address of the ticket'} ({api.problem})",
            "ask the organiser whether it runs, and whether its firewall lets that port through; `join` waits for it",
        )
    if api.version != own_version:
        return warn(
            "coordinator",
            f"{api.address} answers, with version {api.version}; this is {own_version}",
            "install the same version",
        )
    return ok("coordinator", f"{api.address} answers, version {api.version}")


def about_clock(ahead_seconds: float | None) -> Finding:
    if ahead_seconds is None:
        return skipped("clock", "nobody to compare with")
    if abs(ahead_seconds) > MAX_SKEW_SECONDS:
        side = "ahead of" if ahead_seconds > 0 else "behind"
        return fail(
            "clock",
            f"this machine's clock is {duration(abs(ahead_seconds))} {side} the coordinator's",
            "set it right: timedatectl set-ntp true (Linux), or the date and time settings; if it is right, tell the"
            " organiser",
        )
    return ok("clock", f"{abs(ahead_seconds):.1f} s from the coordinator's")


def about_bootstrap(found: Bootstrap) -> Finding:
    if found.other_run:
        return fail("swarm", found.other_run, "ask the organiser for the present ticket")
    if found.problem:
        return fail(
            "swarm",
            f"nobody answers at {', '.join(found.tried) or 'any address of the ticket'} ({found.problem})",
            "the swarm's port may be closed at the coordinator, or outgoing connections blocked here (a company's"
            " network, a VPN): try another network, or ask the organiser",
        )
    others = f", {found.peers} peer{'s' * (found.peers != 1)} training" if found.peers else ""
    return ok("swarm", f"joined, {found.round_trip_seconds * 1000:.0f} ms to the sequencer{others}")


def about_reachability(proven: Sequence[str], port: int) -> Finding:
    """`proven`: where other nodes have just dialled this machine, as multiaddrs; a relay's do not count."""
    direct = [address for address in proven if "/p2p-circuit" not in address]
    if direct:
        return ok("reachable", f"others can dial in at {direct[0]}")
    return warn(
        "reachable",
        "behind NAT or a firewall: nobody can dial in, so this peer contributes, and serves only whom it dialled",
        f"nothing is broken; to help more, switch UPnP on in the router, or forward TCP port {port or 'P'} to this"
        f" machine and let its firewall pass it" + ("" if port else ", and set it with --port P"),
    )


def about_speed(speed: Speed, model: Model | None, allowed_bytes_per_second: float | None = None) -> Finding:
    """Whether a contribution goes up in time, as the rung of the ladder that this uplink would hide. The owner's cap
    counts like a slow link."""
    measured = f"up {link_rate(speed.up_bytes_per_second)}, down {link_rate(speed.down_bytes_per_second)}"
    up = min(speed.up_bytes_per_second, allowed_bytes_per_second or math.inf)
    if up < speed.up_bytes_per_second:
        measured += f", network.upload_mbit allows {link_rate(up)} up"
    if model is None or up <= 0:
        return ok("bandwidth", measured)
    rung = choose(model.ladder, model.parameters, [up], ROUND_SHARE * model.round_seconds, model.ladder[0])
    weight = payload_bytes(rung, model.parameters)
    seconds = weight / up
    takes = f"a contribution of {size(weight)} ({rung}) takes {duration(seconds)}"
    if rung != model.ladder[0]:
        takes += (
            f"; as {model.ladder[0]} it would take {duration(payload_bytes(model.ladder[0], model.parameters) / up)}"
        )
    if seconds > model.round_seconds:
        return warn(
            "bandwidth",
            f"{measured}: {takes}, longer than a round ({duration(model.round_seconds)})",
            "use a cable instead of wireless, raise network.upload_mbit if it is set, or join a smaller model's run",
        )
    return ok("bandwidth", f"{measured}: {takes}")
