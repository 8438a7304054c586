"""Why an engine failed, as far as its log shows, and what an operator can do about it.

The patterns are of lines that engines, libraries, drivers and the kernel write (tests/modelregistry/failures/). The
first pattern that a log has wins, so the particular come before the general.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

NO_ROOM = "does-not-fit"
GANG_WAITS = "gang-waits"  # of a rank other than 0

# code -> one sentence for the operator.
ADVICE: Mapping[str, "StrOrPromise"] = {
    "gpu-memory": _(
        "The GPU’s memory was not enough: choose a shorter context, fewer parallel requests, a smaller quantisation"
        " or more GPUs, or stop what else holds its memory."
    ),
    "host-memory": _(
        "The machine’s memory (RAM) was not enough: choose a smaller model, a shorter context or fewer parallel"
        " requests, or stop another model."
    ),
    "cache-memory": _(
        "The memory left beside the weights is too little for one request of this context: choose a shorter"
        " context, or give the model more memory."
    ),
    "state-memory": _(
        "Each request of this model keeps a state of fixed size, and there is memory for fewer of them than it is"
        " to work on at a time: choose fewer parallel requests, or give it more memory."
    ),
    NO_ROOM: _("By the plan it does not fit into the memory: make it smaller, stop another model, or force it."),
    "port-in-use": _("The port was in use: it will be tried on another one. If it happens again, change ENGINE_PORTS."),
    "missing-file": _("A file of the model is missing: check the path, and whether the disk is mounted on this host."),
    "bad-files": _("The model’s files cannot be read or are incomplete: copy them again and compare their sizes."),
    "no-permission": _(
        "A file may not be read: give the user that runs Madoguchi the right to read the model’s files."
    ),
    "disk-full": _("A disk is full: free some space, then restart the model."),
    "unknown-quantisation": _(
        "The engine does not know this quantisation, or not on this hardware: take another quantisation of the"
        " model, or a newer engine."
    ),
    "unknown-architecture": _("The engine does not know this kind of model: take a newer engine, or another model."),
    "context-too-long": _(
        "The context is longer than the model allows: lower it to the model’s own, or leave it empty."
    ),
    "bad-argument": _(
        "The engine does not know one of the additional arguments: check their spelling and its version."
    ),
    "remote-code": _(
        "The model brings program code of its own: allow “remote-code” for it if you trust where it came from."
    ),
    "not-local": _(
        "It tried to load something from the internet, which engines may not reach: put all files into the model’s"
        " directory."
    ),
    "no-gpu": _(
        "The engine found no GPU: check with nvidia-smi that the driver works, or install the engine’s build for CPUs."
    ),
    "driver": _(
        "The GPU’s driver is too old for this engine, or does not fit it: update the driver or take another build."
    ),
    "old-gpu": _("This GPU cannot run the engine’s programs for this model: take another quantisation or data type."),
    "split": _("The model cannot be split over so many GPUs: choose a number that divides its attention heads."),
    "shared-memory": _("The shared memory (/dev/shm) is too small: enlarge it; in a container, with --shm-size."),
    "no-engine": _("This host has no such engine: install it with “manage.py installengine”, or name its program."),
    "gang-incomplete": _(
        "It runs only while all of its hosts do their part, and not all can start theirs: the reason is above, and at"
        " that part. It is tried again by itself."
    ),
    GANG_WAITS: _(
        "It runs only together with the parts on its other hosts: it waits until all of them can start. The reason is"
        " at the part of rank 0."
    ),
    "gang-differs": _(
        "All of its hosts need the same version of the engine and the same kind of memory: install that version on them"
        " with “manage.py installengine”, or choose one in the model’s settings."
    ),
    "gang-broken": _(
        "The part on another of its hosts ended or is not reached, so all were stopped and are started again: the cause"
        " is at that part."
    ),
    "gang-unreachable": _(
        "The parts on its hosts did not reach each other: open all TCP ports between these hosts in their firewalls,"
        " and check that the hosts’ addresses are those of the network between them."
    ),
    "too-slow": _("It did not answer in time: if the log shows that it was still loading, raise ENGINE_START_TIMEOUT."),
    # The engine's own installation
    "driver-library": _(
        "A library of the GPU’s driver is missing (libcuda): install NVIDIA’s driver on this host, or take the"
        " engine’s build for CPUs. The model’s files are fine."
    ),
    "missing-library": _(
        "A library that the engine needs is missing on this host: install the engine again with “manage.py"
        " installengine”, or the system package that brings the library. The model’s files are fine."
    ),
    "mixed-packages": _(
        "The engine’s packages do not fit each other: install it again with “manage.py installengine”, and change"
        " nothing in its environment by hand."
    ),
    "missing-package": _(
        "The engine’s environment lacks a Python package that this model needs: install an engine that brings it,"
        " or add it to the environment that VLLM_COMMAND names."
    ),
    "old-system": _(
        "The system is too old for this build of the engine (glibc): take an older build, or a newer system."
    ),
    "other-processor": _(
        "The engine was compiled for another processor: compile it on this host, or take a build for any CPU."
    ),
    "no-compiler": _(
        "The engine compiles parts of itself and finds no compiler: install g++ and Python’s headers (apt-get"
        " install g++ python3-dev), or turn compiling off with --enforce-eager."
    ),
    "no-nvcc": _(
        "The engine wants to compile for the GPU and finds no nvcc: install NVIDIA’s CUDA toolkit and set"
        " CUDA_HOME, or choose another attention backend."
    ),
    "no-cache-directory": _(
        "The engine may not write where it keeps what it compiled: give the user that runs Madoguchi a home"
        " directory that it may write to."
    ),
    "read-only": _("The engine wants to write on a disk that is read-only: mount it for writing, or move its caches."),
    "container": _(
        "The container that VLLM_COMMAND starts cannot be started: check that the user may use it, and NVIDIA’s"
        " container toolkit."
    ),
    # Limits of the host
    "open-files": _(
        "The limit of open files is too low: raise it (LimitNOFILE in the supervisor’s unit, or ulimit -n), to"
        " 65536 for example."
    ),
    "threads": _(
        "The limit of processes or threads was reached: raise it (TasksMax in the supervisor’s unit, or ulimit -u),"
        " or set OMP_NUM_THREADS."
    ),
    "bad-address": _(
        "The host does not have the address on which its engines listen: correct the host’s address, or its network."
    ),
    "start-fault": _(
        "The supervisor itself failed at this model, before any engine ran: its log has the details. Check the model’s"
        " files and arguments; if they are right, report it as a fault of Madoguchi."
    ),
    "disk-fault": _("A disk cannot be read, or a network disk is away: check the mount and the kernel’s messages."),
    # GPUs
    "old-gpu-bf16": _(
        "This GPU is too old for bfloat16: add --dtype=half to the arguments, or take a card of compute capability"
        " 8.0 or newer."
    ),
    "old-gpu-fp8": _(
        "This GPU cannot calculate in FP8: use another quantisation (AWQ, GPTQ, INT8), remove "
        "--kv-cache-dtype=fp8, or use a newer card."
    ),
    "gpu-lost": _(
        "The system has lost the GPU (Xid 79 or the like): look at the kernel’s messages (dmesg), "
        "restart the host, and check the card’s power, temperature and seating."
    ),
    "gpu-memory-fault": _(
        "The GPU’s memory reports errors that cannot be corrected (ECC): reset the card or restart the host; if it"
        " happens again, have the card replaced."
    ),
    "gpu-busy": _(
        "Another process has exclusive use of the GPU: stop it, or set the card’s compute mode back to "
        "default (nvidia-smi -c 0)."
    ),
    "gpu-crash": _(
        "A program on the GPU crashed: restart the model; if it happens again, look for “Xid” in the "
        "kernel’s messages, and try --enforce-eager, another quantisation or another version of the "
        "engine."
    ),
    "gpu-kernel": _(
        "One of the engine’s programs needs more than this GPU has (shared memory, registers): try another"
        " attention backend or quantisation, a smaller context, or another version of the engine."
    ),
    "driver-mismatch": _(
        "The driver was updated and the kernel still runs the old one: restart the host (or reload NVIDIA’s modules)."
    ),
    "fabric-manager": _(
        "The links between the GPUs are not set up: start NVIDIA’s Fabric Manager of the same version as the driver"
        " (systemctl start nvidia-fabricmanager)."
    ),
    "too-few-gpus": _(
        "The model is to be split over more GPUs than the engine sees: lower “split over GPUs”, or check with"
        " nvidia-smi that all cards are there."
    ),
    "attention-backend": _(
        "No attention backend of this engine supports the model on this GPU: remove --attention-backend,"
        " or try another --kv-cache-dtype or a newer engine."
    ),
    # Several GPUs
    "nccl": _(
        "The GPUs could not talk to each other (NCCL): set NCCL_DEBUG=INFO and restart to see why;"
        " NCCL_P2P_DISABLE=1 or --disable-custom-all-reduce often helps on hosts without NVLink."
    ),
    "nccl-timeout": _(
        "One of several GPUs did not answer the others in time: look for its process’s own error further up in the"
        " log, and for “Xid” in the kernel’s messages."
    ),
    "nccl-network": _(
        "NCCL found no network interface that it may use: name the right one in NCCL_SOCKET_IFNAME (for one host: lo)."
    ),
    "split-quantised": _(
        "The quantised weights cannot be cut into so many parts: split the model over fewer GPUs, or take another"
        " quantisation (smaller groups, or none)."
    ),
    # What was asked for
    "batch-too-small": _(
        "An input may be longer than what the engine computes at a time: raise --max-num-batched-tokens "
        "to the context, or remove --no-enable-chunked-prefill."
    ),
    "quantisation-mismatch": _(
        "The quantisation in the arguments is not that of the files: remove --quantization, it is detected"
        " automatically."
    ),
    "dtype": _("This quantisation does not work with the data type: set another one, usually --dtype=half."),
    "kv-cache-type": _(
        "The cache cannot have this type with this model or engine: remove --kv-cache-dtype (or "
        "--cache-type-v), or turn flash attention on (llama.cpp: --flash-attn on)."
    ),
    "parser": _("The engine has no such parser for tool calls or reasoning: the line says which ones it has."),
    "chat-template": _(
        "The chat template cannot be used: check the file that --chat-template names, or take one that suits the model."
    ),
    "bad-configuration": _(
        "The engine refuses these settings together: the line after “Value error” says which, and what it wants."
    ),
    # Files
    "pointer-file": _(
        "A file of the model is not the file itself but a pointer or a web page in its place: fetch it again, with"
        " “git lfs pull” or “hf download”."
    ),
    "weights-mismatch": _(
        "The weights do not fit the model’s description, or the engine knows an older form of it: copy all its"
        " files again from one place, or take a newer engine."
    ),
    "tokenizer": _(
        "The tokenizer cannot be read: copy its files (tokenizer.json, tokenizer_config.json, *.model) again, or"
        " take an engine with a newer transformers."
    ),
    "adapter": _(
        "A LoRA adapter cannot be used: it is of another model, its rank is larger than --max-lora-rank, or its"
        " file is missing."
    ),
    "projector": _(
        "The projector for images (--mmproj) cannot be used: take the one that was published with this very model."
    ),
    "draft-model": _(
        "The draft model cannot be used: it needs the same vocabulary as the model, and memory of its own."
    ),
    # Sleep
    "sleep-unsupported": _(
        "This build of vLLM has no sleep mode on this hardware, so the model is stopped when it is idle, and started"
        " again when it is called."
    ),
    "sleep-cpu": _(
        "vLLM’s build for CPUs has no sleep mode, so the model is stopped when it is idle, and started again when it is"
        " called."
    ),
    "sleep-unguarded": _(
        "Only a vLLM that “manage.py installengine” installed is put to sleep: of the program that VLLM_COMMAND names,"
        " the routes that sleep needs could not be closed to others. It is stopped when it is idle."
    ),
    "sleep-version": _(
        "This version of vLLM is too old to be put to sleep (0.11 or newer can): the model is stopped when it is idle."
    ),
    "sleep-unknown": _("This engine cannot be put to sleep, so the model is stopped when it is idle."),
    "sleep-no-sample": _(
        "The model gave no answer to the fixed question, with which it would have to prove itself after waking, so it"
        " is stopped when it is idle."
    ),
    "sleep-failed": _("It did not go to sleep as it should, so it was stopped; it is started again when it is called."),
    "sleep-memory": _(
        "Asleep, it kept most of the GPU’s memory, so it was stopped; it is started again when it is called. Try"
        " another version of vLLM, or let the model be stopped when it is idle."
    ),
    "wake-failed": _("It did not wake as it should, so it was stopped and started again."),
    "wake-damaged": _(
        "After waking it answered a fixed question otherwise than before, so it was stopped and started again, before"
        " any caller was answered. If it happens again, try another version of vLLM, or let the model be stopped when"
        " it is idle."
    ),
    # Questions that an engine that runs did not answer
    "host-silent": _(
        "Neither it nor its host answers: the host has no power, or is cut off. It is started on another host if it may"
        " run there; otherwise look at its host."
    ),
    "no-answer": _(
        "It did not answer the controller’s questions: it hangs, or the network between the controller and its host"
        " fails. Calls go to it again when it answers; its log may show more."
    ),
    "bad-answer": _(
        "It answers the controller’s questions with an error: calls go to it again when it answers well; its log may"
        " show more."
    ),
    # The engine itself
    "engine-crash": _(
        "The engine itself crashed, which is a fault of the engine: try another version, and try it "
        "without the additional arguments. Report the last lines to its developers."
    ),
    "killed": _(
        "It was killed from outside (SIGKILL): look for memory shortage in the kernel’s messages, and "
        "check who may kill processes on this host."
    ),
}

# What an engine that runs is asked, and does not answer: there is nothing of its log in what is noted of it then.
SILENT_HOST, NO_ANSWER, BAD_ANSWER = "host-silent", "no-answer", "bad-answer"

# Instead of the advice for NO_ROOM.
BOOKED_ROOM = _(
    "By the plan it does not fit into the memory, of which other work on the cluster has booked %(size).1f GB on this"
    " host: wait until that ends, make the model smaller, or stop another model."
)

UNKNOWN = _("The cause is not known. The last lines of its log:")

# The first that a log has wins: the particular before the general, what comes first in a failure before what follows.
PATTERNS: tuple[tuple[str, str], ...] = (
    # The kernel's and the driver's own words
    ("gpu-lost", r"Xid \S+ (?:79|119|120|154)\b|fallen off the bus|GPU is lost|Unable to determine the device handle"),
    ("gpu-memory-fault", r"Xid \S+ (?:48|63|64|92|94|95)\b|uncorrectable (?:NVLink|ECC) error|double.bit ECC"),
    ("gpu-crash", r"Xid \S+ \d+\b"),
    ("host-memory", r"[Oo]ut of memory: Killed process|oom-kill|Memory cgroup out of memory"),
    ("driver-mismatch", r"Driver/library version mismatch|API mismatch: the (?:NVIDIA )?kernel module"),
    ("fabric-manager", r"Error 802: system not yet initialized|system not yet initialized|nvidia-fabricmanager"),
    (
        "container",
        r"nvidia-container-cli|could not select device driver|Cannot connect to the Docker daemon|docker\.sock",
    ),
    # The engine's installation
    ("driver-library", r"lib(?:cuda|nvidia-ml|nvcuvid)\.so\S*: cannot open shared object|Could not load.*libcuda\.so"),
    ("driver-library", r"libcuda\.so(?:\.1)? cannot found|cannot find -lcuda"),
    ("missing-library", r"cannot open shared object file"),
    ("old-system", r"version `(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+' not found"),
    ("mixed-packages", r"undefined symbol: |operator torchvision::\w+ does not exist|incompatible with the installed"),
    ("mixed-packages", r"cannot import name '[\w]+' from '(?:torch|transformers|vllm|numpy|huggingface_hub)"),
    (
        "no-nvcc",
        r"[Cc]ould not find `?nvcc|nvcc[\"'` ]*(?:: )?(?:command )?not found|No such file or directory: '\S*nvcc'",
    ),
    ("no-nvcc", r"CUDA_HOME environment variable is not set|/bin/nvcc: No such file"),
    ("no-compiler", r"Failed to find C compiler|No working C\+\+ compiler found|Compiler: \S+ is not found"),
    (
        "no-compiler",
        r"Python\.h: No such file|Ninja is required|No such file or directory: '(?:ninja|g\+\+|gcc|cc|c\+\+)'",
    ),
    ("no-compiler", r"InvalidCxxCompiler|(?:gcc|g\+\+|cc1plus): (?:fatal )?error: "),
    (
        "missing-package",
        r"ModuleNotFoundError: No module named|Please install vllm\[|PackageNotFoundError",
    ),
    ("other-processor", r"[Ii]llegal instruction|SIGILL|requires AVX"),
    # Limits
    ("open-files", r"Too many open files|Errno 24\b"),
    (
        "threads",
        r"can't start new thread|Thread creation failed|pthread_create failed|Resource temporarily unavailable",
    ),
    (
        "shared-memory",
        r"</torch_\S+>.*No space left|insufficient shared memory|/dev/shm\S*: No space left|Bus error|SIGBUS",
    ),
    ("disk-full", r"No space left on device|Errno 28\b|Disk quota exceeded"),
    ("read-only", r"Read-only file system|Errno 30\b"),
    ("disk-fault", r"Stale file handle|Errno 116\b|Input/output error|Errno 5\]|Transport endpoint is not connected"),
    (
        "no-cache-directory",
        r"Permission denied: '(?:/root|/nonexistent|/\.\w+|/home/[^/']+/\.(?:cache|triton|config|nv))",
    ),
    # GPUs and what they cannot do
    ("old-gpu-bf16", r"[Bb]float16 is only supported on GPUs|bfloat16 KV cache is not supported on"),
    (
        "old-gpu-fp8",
        r"fp8e4nv not supported|FP8 (?:Marlin )?requires compute capability|torch\._scaled_mm is only supported",
    ),
    ("old-gpu-fp8", r"fp8\S* (?:is )?not supported (?:on|in) (?:this|the current|compute)"),
    ("gpu-kernel", r"out of resource: |OutOfResources|too many resources requested for launch"),
    ("gpu-memory-fault", r"uncorrectable ECC error encountered"),
    ("gpu-busy", r"CUDA-capable device\(s\) is/are busy or unavailable|exclusive.process"),
    # Several GPUs
    ("too-few-gpus", r"World size \(\d+\) is larger than the number of available GPUs|invalid device ordinal"),
    (
        "too-few-gpus",
        r"number of required \w+ exceeds the total number of available|got input configs, but system only",
    ),
    # Memory
    ("gpu-memory", r"OutOfMemoryError|CUDA out of memory|cudaMalloc failed: out of memory|CUDA error: out of memory"),
    ("gpu-memory", r"Cuda failure \d+ '?out of memory"),
    ("gpu-memory", r"Triton Error \[CUDA\]: out of memory|hipErrorOutOfMemory|ROCm error: out of memory"),
    ("gpu-memory", r"CUBLAS_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)"),
    ("gpu-memory", r"Free memory on device .* is less than desired GPU memory utilization"),
    (
        "gpu-memory",
        r"(?:unable|failed) to allocate (?:CUDA|ROCm|Vulkan)\d* buffer|Device memory allocation of size \d+ failed",
    ),
    ("state-memory", r"exceeds available Mamba cache blocks"),
    ("gpu-memory", r"No available memory for the cache blocks"),
    ("cache-memory", r"larger than the (?:maximum number of tokens that can be stored in|available) KV cache"),
    ("cache-memory", r"To serve at least one request with the model|estimated maximum model length"),
    ("host-memory", r"Available memory on node \d+ .* is less than requested memory"),
    ("host-memory", r"Cannot allocate memory|can't allocate memory|DefaultCPUAllocator|std::bad_alloc|MemoryError"),
    (
        "host-memory",
        r"insufficient memory \(attempted|(?:unable|failed) to allocate (?:CPU )?buffer|Errno 12\b",
    ),
    ("gpu-crash", r"illegal memory access|device-side assert|unspecified launch failure|misaligned address"),
    ("gpu-crash", r"CUBLAS_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR)|CUDNN_STATUS_\w+|cudaErrorLaunch"),
    # What the others of several GPUs write after one of them failed comes behind its own cause.
    ("nccl-network", r"no socket interface found|NCCL.*(?:Bootstrap|socket).*(?:fail|No route)"),
    ("nccl-timeout", r"Watchdog caught collective operation timeout|ProcessGroupNCCL.*timeout|collective.*timed out"),
    ("nccl", r"NCCL error|ncclSystemError|ncclUnhandledCudaError|ncclInternalError|ncclInvalidUsage|ncclRemoteError"),
    ("nccl", r"NCCL WARN|DistBackendError|peer access is not supported between these two devices"),
    # The network
    (
        "gang-unreachable",
        r"The client socket has (?:timed out|failed to connect)|waiting for clients\. \d+/\d+ clients joined",
    ),
    ("port-in-use", r"Address already in use|couldn't bind HTTP server socket|EADDRINUSE"),
    ("bad-address", r"Cannot assign requested address|Errno 99\b"),
    # What was asked for
    ("sleep-unsupported", r"Sleep mode is not supported on current platform|cumem allocator is not supported"),
    ("remote-code", r"contains custom code which must be executed|pass the argument `trust_remote_code=True`"),
    ("context-too-long", r"max_model_len \(\d+\) is greater than the derived max_model_len"),
    (
        "batch-too-small",
        r"max_num_batched_tokens \(\d+\) (?:is smaller than max_model_len|must be greater than or equal to)",
    ),
    (
        "split-quantised",
        r"(?:in|out)put_(?:partition_)?size\S* .*is not divisible by|not aligned with the quantized weight",
    ),
    ("split-quantised", r"is not divisible by weight quantization block|is indivisible by min_thread"),
    ("split-quantised", r"Consider reducing tensor_parallel_size"),
    ("split", r"must be divisible by tensor parallel size|divisible by tensor_parallel_size"),
    ("quantisation-mismatch", r"does not match the quantization method specified"),
    ("dtype", r"is not supported for quantization method \w+\. Supported dtypes"),
    (
        "kv-cache-type",
        r"kv-cache is not supported with|quantized V cache|V cache quantization requires|requires flash_attn",
    ),
    ("attention-backend", r"No valid attention backend found|[Hh]ead size \d+ is not supported|Unsupported head.?size"),
    ("parser", r"invalid (?:tool call|reasoning) parser|[Tt]ool parser .* not found"),
    (
        "chat-template",
        r"chat template .*(?:not supported|doesn't exist|appears path-like)|appears path-like, but doesn't exist",
    ),
    ("chat-template", r"TemplateSyntaxError|failed to initialize chat template"),
    ("old-gpu", r"no kernel image is available|Min(?:imum)? capability: |invalid device function|NoBinaryForGpu"),
    ("old-gpu", r"device kernel image is invalid|too old.*CUDA capability|cuda capability \d.*no longer support"),
    ("driver", r"driver version is insufficient|driver on your system is too old|forward compatibility was attempted"),
    ("driver", r"PTX was compiled with an unsupported toolchain|unsupported display driver"),
    ("no-gpu", r"no CUDA-capable device|No CUDA GPUs are available|Failed to infer device type|no usable GPU found"),
    ("no-gpu", r"Found no NVIDIA driver|NVML Shared Library Not Found|couldn't communicate with the NVIDIA driver"),
    # Files
    (
        "pointer-file",
        r"git-lfs\.github\.com|invalid magic characters: '(?:vers|<!DO|<!do|<htm|<HTM)'|HeaderTooLarge.*git-lfs",
    ),
    (
        "adapter",
        r"LoRA rank \d+ is greater than max_lora_rank|failed to (?:apply|load) lora adapter|No adapter found for",
    ),
    (
        "projector",
        r"mismatch between (?:text model|vision).*mmproj|failed to load multimodal model|Failed to load CLIP model",
    ),
    (
        "draft-model",
        r"failed to load draft model|[Dd]raft model.*(?:vocab|must match)|should have the same vocabulary size",
    ),
    ("tokenizer", r"Couldn't instantiate the backend tokenizer|data did not match any variant of untagged enum"),
    ("tokenizer", r"Can't load tokenizer for|cannot find tokenizer|error loading model vocabulary"),
    ("unknown-quantisation", r"[Uu]nknown quantization|quantization method .* not supported|Invalid quantization"),
    (
        "unknown-quantisation",
        r"quantization.*(?:not supported|not yet supported|unsupported)|invalid ggml type|unknown type",
    ),
    ("unknown-architecture", r"unknown model architecture|does not recognize this architecture"),
    (
        "unknown-architecture",
        r"Model architectures .* (?:are not supported|failed to be inspected)|unknown pre-tokenizer type",
    ),
    ("unknown-architecture", r"has no vLLM implementation"),
    (
        "weights-mismatch",
        r"Attempted to load weight \(|There is no module or parameter named|not initialized from checkpoint",
    ),
    ("weights-mismatch", r"missing tensor '|has wrong shape; expected|wrong number of tensors|size mismatch for "),
    ("weights-mismatch", r"tensor '\S+' not found"),
    ("no-permission", r"Permission denied|Errno 13\b"),
    ("bad-argument", r"unrecognized arguments|invalid argument:|argument -\S+: |invalid choice|expected one argument"),
    ("bad-argument", r"ambiguous option: |error while handling argument"),
    (
        "not-local",
        r"gated repo|Cannot access gated|LocalEntryNotFoundError|offline mode is enabled|Name or service not known",
    ),
    ("not-local", r"Connection error|MaxRetryError|Couldn't reach|couldn't connect to 'https|OfflineModeIsEnabled"),
    (
        "missing-file",
        r"HFValidationError|No such file or directory|FileNotFoundError|Errno 2\b|Cannot find any model weights",
    ),
    (
        "bad-files",
        r"SafetensorError|tensor .* data is not within the file bounds|corrupted or incomplete|failed to read",
    ),
    ("bad-files", r"invalid magic|GGUF file|Error while deserializing|JSONDecodeError|UnpicklingError"),
    ("bad-configuration", r"validation errors? for \w*Config|^Value error, "),
    ("gpu-crash", r"CUDA error: |HIP error: |CUDA driver error"),
    (
        "engine-crash",
        r"GGML_ASSERT|Segmentation fault|SIGSEGV|SIGABRT|SIGFPE|double free or corruption|corrupted size vs",
    ),
    ("engine-crash", r"GGML_ABORT|terminate called after throwing"),
    ("killed", r"was killed by SIGKILL"),
)
_KNOWN = tuple((code, re.compile(pattern, re.MULTILINE)) for code, pattern in PATTERNS)
# What is written at starts that go well, too: limits that could not be raised, pages that could not be locked.
_HARMLESS = re.compile(
    r"Found ulimit of .* failed to automatically increase|failed to mlock|mbind: Operation not permitted"
)


def cause(log: str) -> str:
    """Return a code of ADVICE for what an engine wrote before it failed; empty: not a known cause."""
    text = "\n".join(line for line in log.splitlines() if not _HARMLESS.search(line))
    return next((code for code, pattern in _KNOWN if pattern.search(text)), "")


def advise(cause: str, booked_by_others: int = 0) -> str:
    """Return what to do about a failure; "": its cause is not known.

    `booked_by_others`: bytes on its host that other work on the cluster has booked.
    """
    if cause == NO_ROOM and booked_by_others:
        return str(BOOKED_ROOM) % {"size": booked_by_others / 1e9}
    return str(ADVICE.get(cause, ""))


def words(cause: str, booked_by_others: int = 0) -> str:
    """Return the same; of an unknown failure, that it is unknown: its last lines are shown below."""
    return advise(cause, booked_by_others) or str(UNKNOWN)
