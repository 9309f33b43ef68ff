"""What callgrind counted between two moments: by function, alone and with all that it calls."""

import collections
import re

# Of the C library, which Rust's allocator calls.
ALLOCATE = re.compile(r"(malloc|calloc|realloc|posix_memalign|aligned_alloc)('\d+)?")
# No system calls on a plain machine: valgrind hides the page by which the kernel answers them.
CLOCK = re.compile(r"clock_gettime|gettimeofday")
EVENTS = ["Ir", "sysCount", "sysTime"]


class Counts:
    """Read from a dump of callgrind, which has the costs of each line of each function, and of each call from there."""

    def __init__(self, file):
        self.own, self.whole, self.calls, self.system = (collections.Counter() for _ in range(4))
        names, function, callee, times = {}, None, None, None
        for line in file.read_text().splitlines():
            key, _, rest = line.partition("=")
            if key == "fn":
                function = name(rest, names)
            elif key == "cfn":
                callee = name(rest, names)
            elif key == "calls":
                times = int(rest.split()[0])
            elif line[:1] and line[:1] in "0123456789+-*":
                # Costs that are 0 at the end are left out.
                instructions, system, *_ = [*map(int, line.split()[1:]), 0, 0]
                if times is None:
                    self.own[function] += instructions
                    self.system[function] += system
                else:
                    self.calls[callee] += times
                    # What it spends on itself would be counted twice.
                    self.whole[function] += instructions if callee != function else 0
                    times = None
            elif line.startswith("events:") and line.split()[1:] != EVENTS:
                raise ValueError(f"{file}: callgrind counts other things than expected: {line}")
        self.whole.update(self.own)
        self.file = file

    def values(self):
        """Instructions, allocations, system calls."""
        allocations = sum(times for function, times in self.calls.items() if ALLOCATE.fullmatch(function))
        system = sum(times for function, times in self.system.items() if not CLOCK.search(function))
        return [self.own.total(), allocations, system]


def name(text, names):
    """Names are given once, and are numbers after that."""
    number, _, given = text.partition(" ")
    if given:
        names[number] = given
    return names[number]
