"""Training of a network: ignite's engine and distribution, mixed precision, logs, and checkpoints from which a run goes on to the very same weights."""

from __future__ import annotations

import atexit
import logging
import math
import os
import reprlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from bilagrid.commands import Refusal
from nets import weights

MODEL, STATE = "model.safetensors", "state.safetensors"


@dataclass(frozen=True)
class Schedule:
    """How long and how a network is trained."""

    steps: int = 20_000
    """Steps of the optimiser, in all."""
    batch: int = 4
    """Crops in a step, over all processes of torchrun together."""
    lr: float = 1e-4
    """Adam's learning rate."""
    decay: Literal["none", "cosine"] = "none"
    """Whether the learning rate stays, or falls to 0 at the last step along a cosine."""
    weight_decay: float = 1e-8
    """Adam's L2 penalty."""
    seed: int = 0
    """Decides the first weights and every crop."""
    amp: Literal["auto", "off", "bfloat16", "float16"] = "auto"
    """Mixed precision; auto: bfloat16 on a GPU that has it, else float16 there, and none on a CPU."""
    workers: int = 2
    """Processes that read and cut pictures, for each process that trains."""
    log_every: int = 20
    """Steps between two entries of the log."""
    save_every: int = 1000
    """Steps between two checkpoints, each with pictures in the log."""

    def check(self) -> None:
        """Refuses numbers that make no sense."""
        for name in ("steps", "batch", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise Refusal(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "seed", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Refusal(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise Refusal(f"--lr must be a number above 0, got {self.lr}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lr if self.decay == "none" else self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def start_processes() -> None:
    """If torchrun started this process, joins it to the others until it ends."""
    if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
        idist.initialize("nccl" if torch.cuda.is_available() else "gloo")
        # A thread of gloo that still holds a tensor while Python is taken down aborts the process.
        atexit.register(idist.finalize)


def normalised_over(schedule: Schedule) -> int:
    """The number of crops that a batch norm sees: those of all processes on GPUs, where it is synchronised, else those of one process."""
    return schedule.batch if idist.device().type == "cuda" else schedule.batch // idist.get_world_size()


def say(text: str) -> None:
    """Prints once, however many processes there are."""
    if idist.get_rank() == 0:
        print(text, flush=True)


def train(
    net: weights.Network,
    data: Dataset[Any],
    out: Path,
    schedule: Schedule,
    settings: dict[str, Any],
    *,
    resume: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    show: Callable[[tuple[Tensor, ...], Tensor], Tensor] | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> None:
    """Trains on items ``(*inputs, target)`` of an endless data set, and writes the network and the state of training to a folder.

    Item ``i`` of the data must depend on ``i`` alone. The batch of step ``s`` is the items from ``s * batch`` on, shared out over the processes, so that neither
    a pause nor the number of processes changes what is learned from. Batch norms see the crops of all processes on GPUs, those of their own process on CPUs.

    Args:
        net: a network with its arguments in ``config``.
        out: the folder. Torchrun's first process alone writes there, each file whole or not at all.
        settings: what else the run depends on; a run is resumed only with the same settings.
        resume: go on from the state in ``out``.
        betas: Adam's.
        loss: of result and target.
        show: makes of a batch and its result a picture ``(3, H, W)`` for the log.
        validate: gives figures by name, to log at each checkpoint.

    Raises:
        Refusal: options that do not fit, a folder that holds another run, a loss that is no longer finite.
    """
    schedule.check()
    # It would log every refusal as a failure first.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    world = idist.get_world_size()
    if schedule.batch % world:
        raise Refusal(f"--batch must be a multiple of the {world} processes, got {schedule.batch}")
    device = idist.device()
    optimizer = torch.optim.Adam(
        net.to(device).parameters(), lr=schedule.lr, betas=betas, weight_decay=schedule.weight_decay
    )
    dtype = _precision(schedule.amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    run = _Run(out, net, optimizer, scaler, settings | _kept(schedule))
    began = run.resume() if resume else run.start()
    if began >= schedule.steps:
        raise Refusal(f"{out}: has {began} steps already; raise --steps to go on")

    # In a single process ignite would share out a batch over all GPUs of the machine; that is for torchrun to ask.
    module: nn.Module = net
    if world > 1:
        # A group of its own: torch keeps the one that it is given alive, and `idist.finalize` could not end the threads of the default one.
        group = torch.distributed.new_group()
        module = idist.auto_model(net, sync_bn=device.type == "cuda", process_group=group)
    module.train()
    mine = schedule.batch // world
    steps = range(began, schedule.steps)
    first = idist.get_rank() * mine
    batches = [list(range(s * schedule.batch + first, s * schedule.batch + first + mine)) for s in steps]
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_sampler=batches,
        num_workers=schedule.workers,
        worker_init_fn=_leave_interrupts_to_parent,
        pin_memory=device.type == "cuda",
    )

    def update(engine: Engine, batch: list[Tensor]) -> dict[str, Any]:
        *inputs, target = (tensor.to(device, non_blocking=True) for tensor in batch)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(engine.state.iteration - 1)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            result = module(*inputs)
        value = loss(result.float(), target)
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        return {"loss": value.detach(), "result": result.detach(), "batch": (*inputs, target)}

    engine = Engine(update)
    is_first = idist.get_rank() == 0
    with (
        _interrupts() as interrupted,
        SummaryWriter(str(out), purge_step=began + 1) if is_first else _NoLog() as log,
        tqdm(total=schedule.steps, initial=began, unit="step", disable=None if is_first else True) as bar,
    ):

        def note(engine: Engine) -> None:
            step, output = engine.state.iteration, cast(dict[str, Any], engine.state.output)
            bar.update(step - bar.n)
            if interrupted(world):
                engine.terminate()
            saving = step % schedule.save_every == 0 or step == schedule.steps or engine.should_terminate
            if not (saving or step % schedule.log_every == 0):
                return
            value = idist.all_reduce(output["loss"].double()) / world
            value = value.item() if isinstance(value, Tensor) else value
            # The loss is of the weights before this step.
            if not math.isfinite(value) or (saving and not _is_finite(net)):
                what = f"the loss is {value}" if not math.isfinite(value) else "the weights are no longer finite"
                raise Refusal(f"{what} at step {step}: lower --lr, or --amp off; {out} keeps the last checkpoint")
            psnr = -10 * math.log10(max(value, 1e-12))
            bar.set_postfix(loss=f"{value:.2e}", psnr=f"{psnr:.2f} dB")
            log.add_scalar("train/loss", value, step)
            log.add_scalar("train/psnr", psnr, step)
            if saving and is_first:
                run.save(step)
                if show is not None:
                    log.add_image("train/pictures", show(output["batch"], output["result"]).clamp(0, 1), step)
                if validate is not None and not engine.should_terminate:
                    net.eval()
                    for name, figure in validate(net).items():
                        log.add_scalar(f"valid/{name}", figure, step)
                    net.train()

        engine.add_event_handler(Events.ITERATION_COMPLETED, note)
        engine.load_state_dict({"iteration": began, "max_epochs": 1, "epoch_length": schedule.steps})
        engine.run(loader)
    if engine.should_terminate:
        say(f"saved {out} at step {engine.state.iteration}; --resume goes on from there")
        raise KeyboardInterrupt


class _Run:
    """The folder of a run: the network alone, for use, and the state from which training goes on."""

    def __init__(
        self,
        out: Path,
        net: weights.Network,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        settings: dict[str, Any],
    ) -> None:
        self._out, self._net, self._optimizer, self._scaler, self._settings = out, net, optimizer, scaler, settings
        self._kind = f"training of {type(net).__name__}"
        self._spent, self._began = 0.0, time.monotonic()

    def start(self) -> int:
        if (self._out / STATE).exists():
            raise Refusal(f"{self._out}: holds a run; --resume goes on with it, or choose another folder")
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise Refusal(f"{self._out}: must be a folder to hold the run, is none") from None
        return 0

    def resume(self) -> int:
        """Loads everything; returns the steps that are done."""
        tensors, facts = weights.load(self._out / STATE, self._kind)
        made = facts["config"] | facts["settings"]
        for name, mine in (self._net.config | self._settings).items():
            if made.get(name) != mine:
                both = (made.get(name), mine)
                theirs, ours = (reprlib.repr(value) if isinstance(value, list) else value for value in both)
                raise Refusal(
                    f"{self._out}: was made with {name} = {theirs}, and goes on with the same only, got {ours}"
                )
        by_part: dict[str, dict[str, Tensor]] = {"net": {}, "optimizer": {}, "scaler": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            by_part[part][rest] = tensor
        self._net.load_state_dict(by_part["net"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in by_part["optimizer"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})
        if by_part["scaler"] and self._scaler.is_enabled():
            scale = {"scale": by_part["scaler"]["scale"].item(), "_growth_tracker": int(by_part["scaler"]["growth"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | scale)
        self._spent = facts["seconds"]
        return facts["step"]

    def save(self, step: int) -> None:
        seconds = self._spent + time.monotonic() - self._began
        facts = {"step": step, "seconds": round(seconds, 1), "settings": self._settings, "torch": torch.__version__}
        tensors = {f"net.{name}": tensor for name, tensor in self._net.state_dict().items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        if self._scaler.is_enabled():
            state = self._scaler.state_dict()
            tensors |= {"scaler.scale": torch.tensor(state["scale"], dtype=torch.float64)}
            tensors |= {"scaler.growth": torch.tensor(state["_growth_tracker"])}
        weights.save_network(self._out / MODEL, self._net, **facts)
        # Last: what is resumed is never newer than the network beside it.
        weights.save(self._out / STATE, tensors, {"kind": self._kind, "config": self._net.config, **facts})


class _NoLog:
    """What the other processes write their logs to."""

    def __enter__(self) -> _NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_scalar(self, *_: object) -> None:
        pass

    add_image = add_scalar


class _interrupts:  # noqa: N801 -- a context manager, used as a function
    """Within it, Ctrl-C and torchrun's request to end only raise a flag. Called, it says whether that of any process is raised."""

    def __enter__(self) -> _interrupts:
        self._raised = False
        self._before = {kind: signal.signal(kind, self._raise) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def __call__(self, world: int) -> bool:
        return bool(idist.all_reduce(int(self._raised), "MAX")) if world > 1 else self._raised

    def _raise(self, kind: int, _: object) -> None:
        self._raised = True
        if kind == signal.SIGINT:
            signal.signal(kind, self._before[signal.SIGINT])  # a second Ctrl-C does not wait for the step to end


def _kept(schedule: Schedule) -> dict[str, Any]:
    """The part of a schedule that may not change when a run is resumed."""
    names = ("batch", "lr", "decay", "weight_decay", "seed", "amp") + (("steps",) if schedule.decay != "none" else ())
    return {name: getattr(schedule, name) for name in names}


def _is_finite(net: nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in net.state_dict().values())


def _precision(amp: str, device: torch.device) -> torch.dtype:
    if amp == "off" or (amp == "auto" and device.type == "cpu"):
        return torch.float32
    if amp == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if amp == "bfloat16" else torch.float16


def _leave_interrupts_to_parent(_: int) -> None:
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


def side_by_side(batch: tuple[Tensor, ...], result: Tensor) -> Tensor:
    """Input, result and target of up to four items, a row each: ``(3, H, W)``."""
    columns = (batch[0], result.float(), batch[-1])
    return torch.cat([torch.cat([image.cpu() for image in column[:4]], 1) for column in columns], 2)
