//! Signals to the ranks that were launched.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// In a group of its own, so that a terminal's interrupt comes to the launcher alone, and to each rank once, from there; and so
/// that it ends when the launcher does, however that ends.
pub(super) fn prepare(command: &mut Command) {
    command.process_group(0);
    end_with_parent(command);
}

#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command) {
    let launcher = std::process::id();
    let prepare = move || {
        #[allow(unsafe_code, reason = "the standard library has no name for it")]
        // SAFETY: two system calls on numbers; both may be made between fork and exec.
        let is_orphan = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong) != 0
                || libc::getppid() != launcher as libc::pid_t
        };
        if is_orphan { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
    };
    #[allow(unsafe_code, reason = "the only way to run something between fork and exec")]
    // SAFETY: what runs there makes system calls only; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(prepare);
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_command: &mut Command) {}

/// To a process that has not been waited for, so that its number is still its own.
pub(super) fn send(child: &Child, signal: i32) {
    kill(child.id() as libc::pid_t, signal);
}

/// It and all that it started.
pub(super) fn kill_group(child: &Child) {
    kill(-(child.id() as libc::pid_t), libc::SIGKILL);
}

fn kill(process: libc::pid_t, signal: i32) {
    #[allow(unsafe_code, reason = "the standard library can only kill")]
    // SAFETY: a system call on two numbers. That the process has ended already is no matter.
    unsafe {
        libc::kill(process, signal);
    }
}

/// `SIGKILL`, or `signal 42`.
pub(super) fn name(signal: i32) -> String {
    let name = match signal {
        libc::SIGKILL => "SIGKILL (out of memory?)",
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        libc::SIGFPE => "SIGFPE",
        libc::SIGHUP => "SIGHUP",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}
