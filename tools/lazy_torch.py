#!/usr/bin/env python3
"""Makes libtorch a library that is loaded when it is first called, not whenever the program starts.

usage: lazy_torch.py LIBTORCH FOLDER

libtorch's own start takes a quarter of a second, of every `plan` or `status`, too. So what torch-sys would link into the program (its
C functions, which call libtorch's C++) becomes a shared library instead, libferrotype_torch.so; and the program is linked with functions
of the same names that load it at their first call and jump there from then on. It is looked for beside the program, then as any library
is (LD_LIBRARY_PATH, the folder where libtorch lay at the build), then where it was made, below FOLDER.

Printed is the end of a .cargo/config.toml, from its table [env] on: it tells cargo to link that in place of running torch-sys's build
script. On machines other than x86-64 Linux nothing is printed, and libtorch is linked as usual.
"""
import hashlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

NAME = "libferrotype_torch.so"
SOURCES = ["torch_api.cpp", "torch_api_generated.cpp"]

LOADER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

extern void *ferrotype_torch_slots[];
extern const char *const ferrotype_torch_names[];

static void *open_library(void) {
  char path[4096];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof NAME - 1);
  if (length > 0) {
    path[length] = 0;
    strcpy(strrchr(path, '/') + 1, NAME);
    if (access(path, R_OK) == 0) return dlopen(path, RTLD_LAZY | RTLD_GLOBAL);
  }
  void *library = dlopen(NAME, RTLD_LAZY | RTLD_GLOBAL);
  if (!library && access(BUILT, R_OK) == 0) library = dlopen(BUILT, RTLD_LAZY | RTLD_GLOBAL);
  return library;
}

static const char *load(void) {
  void *library = open_library();
  if (!library) return dlerror();
  for (int i = 0; ferrotype_torch_names[i]; i++) {
    void *function = dlsym(library, ferrotype_torch_names[i]);
    if (!function) return dlerror();
    __atomic_store_n(&ferrotype_torch_slots[i], function, __ATOMIC_RELEASE);
  }
  return NULL;
}

static char reason[4096];

static void load_once(void) {
  const char *error = load();
  if (error) snprintf(reason, sizeof reason, "%s", error);
}

/* Loads the library, once. Returns why that cannot be done, or nothing. */
const char *ferrotype_torch_open(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, load_once);
  return reason[0] ? reason : NULL;
}

/* For a call that comes first: it cannot go on without the library, and its caller expects no error of this kind. */
void ferrotype_torch_load(void) {
  const char *error = ferrotype_torch_open();
  if (!error) return;
  fprintf(stderr, "error: libtorch cannot be loaded: %s\n", error);
  _exit(1);
}
"""

# A function jumps to where its slot says. At first that is a line that pushes the slot's number and goes on here: the arguments of the
# call, whatever they are, are put aside while the library is loaded.
RESOLVE = """
    .text
    .type ferrotype_torch_resolve, @function
ferrotype_torch_resolve:
    push %rdi; push %rsi; push %rdx; push %rcx; push %r8; push %r9; push %rax; push %r10
    sub $128, %rsp
    movups %xmm0, (%rsp); movups %xmm1, 16(%rsp); movups %xmm2, 32(%rsp); movups %xmm3, 48(%rsp)
    movups %xmm4, 64(%rsp); movups %xmm5, 80(%rsp); movups %xmm6, 96(%rsp); movups %xmm7, 112(%rsp)
    call ferrotype_torch_load@PLT
    movups (%rsp), %xmm0; movups 16(%rsp), %xmm1; movups 32(%rsp), %xmm2; movups 48(%rsp), %xmm3
    movups 64(%rsp), %xmm4; movups 80(%rsp), %xmm5; movups 96(%rsp), %xmm6; movups 112(%rsp), %xmm7
    add $128, %rsp
    pop %r10; pop %rax; pop %r9; pop %r8; pop %rcx; pop %rdx; pop %rsi; pop %rdi
    pop %r11
    push %rax
    lea ferrotype_torch_slots(%rip), %rax
    mov (%rax,%r11,8), %r11
    pop %rax
    jmp *%r11
"""


def stubs(names):
    """Assembly: the functions, their slots and their names."""
    lines = [RESOLVE]
    for number, name in enumerate(names):
        lines += [f"    .globl {name}", f"    .type {name}, @function", f"{name}: jmp *ferrotype_torch_slots+{8 * number}(%rip)",
                  f".Lfirst{number}: push ${number}", "    jmp ferrotype_torch_resolve"]
    lines += ["    .data", "    .balign 8", "    .globl ferrotype_torch_slots", "    .hidden ferrotype_torch_slots", "ferrotype_torch_slots:"]
    lines += [f"    .quad .Lfirst{number}" for number in range(len(names))]
    lines += ["    .section .rodata.str1.1,\"aMS\",@progbits,1"]
    lines += [f".Lname{number}: .string \"{name}\"" for number, name in enumerate(names)]
    lines += ["    .section .data.rel.ro,\"aw\",@progbits", "    .balign 8", "    .globl ferrotype_torch_names",
              "    .hidden ferrotype_torch_names", "ferrotype_torch_names:"]
    lines += [f"    .quad .Lname{number}" for number in range(len(names))]
    lines += ["    .quad 0", "    .section .note.GNU-stack,\"\",@progbits", ""]
    return "\n".join(lines)


def sources():
    """Where cargo has put torch-sys."""
    found = subprocess.run(["cargo", "metadata", "--locked", "--format-version", "1"], check=True, capture_output=True, text=True)
    for package in json.loads(found.stdout)["packages"]:
        if package["name"] == "torch-sys":
            return pathlib.Path(package["manifest_path"]).parent / "libtch"
    sys.exit("lazy_torch.py: torch-sys is none of this workspace's dependencies")


def make(libtorch, libtch, folder):
    """Compiles both halves into `folder`."""
    run = lambda *command: subprocess.run([str(part) for part in command], check=True)
    compiler = [os.environ.get("CXX", "c++"), "-O3", "-fPIC", "-w", "-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=1",
                "-DGLOG_USE_GLOG_EXPORT", f"-I{libtorch}/include", f"-I{libtorch}/include/torch/csrc/api/include"]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".torch-") as work:
        work = pathlib.Path(work)
        objects = [work / source.replace(".cpp", ".o") for source in SOURCES]
        for source, compiled in zip(SOURCES, objects):
            run(*compiler, "-c", libtch / source, "-o", compiled)
        run(compiler[0], "-shared", "-o", work / NAME, *objects, f"-L{libtorch}/lib", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch",
            "-lc10", f"-Wl,-rpath,{libtorch}/lib", "-Wl,--exclude-libs,ALL", "-s")
        listed = subprocess.run(["nm", "-D", "--defined-only", work / NAME], check=True, capture_output=True, text=True).stdout
        declared = set(re.findall(r"\b(\w+)\(", "".join((libtch / h).read_text() for h in ("torch_api.h", "torch_api_generated.h"))))
        names = sorted({line.split()[2] for line in listed.splitlines() if line.split()[1] == "T"} & declared)
        (work / "stubs.S").write_text(stubs(names))
        (work / "loader.c").write_text(LOADER)
        for source, more in (("stubs.S", []), ("loader.c", [f'-DNAME="{NAME}"', f'-DBUILT="{folder / NAME}"'])):
            run(os.environ.get("CC", "cc"), "-O2", "-fPIC", *more, "-c", work / source, "-o", work / f"{source}.o")
        made = work / "made"
        made.mkdir()
        run("ar", "rcs", made / "libtch.a", work / "stubs.S.o", work / "loader.c.o")
        (work / NAME).rename(made / NAME)
        made.rename(folder)


def main():
    libtorch, parent = pathlib.Path(sys.argv[1]).absolute(), pathlib.Path(sys.argv[2]).absolute()
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return
    libtch = sources()
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes())
    for text in [*SOURCES, "torch_api.h", "torch_api_generated.h"]:
        digest.update((libtch / text).read_bytes())
    digest.update(f"{libtorch} {(libtorch / 'build-version').read_text()} {parent}".encode())
    folder = parent / digest.hexdigest()[:16]
    if not (folder / "libtch.a").exists():
        parent.mkdir(parents=True, exist_ok=True)
        print("compiling what calls libtorch ...", file=sys.stderr, flush=True)
        make(libtorch, libtch, folder)
    print(f'FERROTYPE_TORCH = "{folder / NAME}"')
    print(f'[target.x86_64-unknown-linux-gnu.tch]\nrustc-link-lib = ["static=tch"]\nrustc-link-search = ["native={folder}"]')


if __name__ == "__main__":
    main()
