//! One boot: QEMU with two disks, the machine's, of which nothing that is written is kept, and the job's.

use super::image::{Image, make_disk};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// MiB; the tests run some containers at once, of which one eats half a GiB.
const MEMORY: &str = "4096";

/// The same number as the machines that the tests are written on have; an emulated one gains nothing by more.
const PROCESSORS: &str = "2";

/// Bytes of the job's disk beyond its files: what a file system needs itself.
const SPARE_BYTES: u64 = 64 << 20;

/// Lines of the console that are shown when a machine ended without a word.
const CONSOLE_LINES: usize = 40;

/// Whether this machine's processor can run the other at full speed. A processor that does not say so may have the
/// device all the same, where a hypervisor helps out in software; such a machine does not come up.
pub fn has_kvm() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let in_hardware = flags.split_whitespace().any(|flag| ["vmx", "svm"].contains(&flag));
    in_hardware && fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Boots, prints what the job says, and gives its status.
pub fn boot(image: &Image, job: &Path, accelerated: bool, limit: Duration) -> Result<i32, String> {
    let scratch = tempfile::tempdir().map_err(|e| format!("a directory for the machine: {e}"))?;
    let (disk, console, status) =
        (scratch.path().join("job"), scratch.path().join("console"), scratch.path().join("status"));
    let files = fs::read_dir(job).map_err(|e| format!("{}: {e}", job.display()))?;
    let bytes: u64 = files.flatten().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    make_disk(job, &disk, (bytes + bytes / 8 + SPARE_BYTES).next_multiple_of(1 << 20))?;
    eprintln!("booting: {}", if accelerated { "KVM" } else { "emulated, five to ten times slower than this machine" });
    let mut machine = Machine(
        command(image, &disk, &console, &status, accelerated)
            .spawn()
            .map_err(|e| format!("start qemu-system-x86_64: {e}"))?,
    );
    let output = machine.0.stdout.take().ok_or("no output of the machine")?;
    let printing = std::thread::spawn(move || print(BufReader::new(output)));
    let deadline = Instant::now() + limit;
    let ended = loop {
        match machine.0.try_wait().map_err(|e| format!("wait for the machine: {e}"))? {
            Some(_) => break true,
            None if Instant::now() > deadline => break false,
            None => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    drop(machine);
    let _ = printing.join();
    if !ended {
        return Err(format!("the machine was switched off after {limit:?}"));
    }
    let status = fs::read_to_string(status).unwrap_or_default();
    status.trim().parse().map_err(|_| {
        let console = fs::read(console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let lines: Vec<&str> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
        format!("the machine ended without a status; the end of its console:\n{last}")
    })
}

fn command(image: &Image, job: &Path, console: &Path, status: &Path, accelerated: bool) -> Command {
    // However this process ends, the machine ends with it.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args([
        "-machine",
        "q35",
        "-m",
        MEMORY,
        "-smp",
        PROCESSORS,
        "-display",
        "none",
        "-no-reboot",
        "-nic",
        "none",
    ]);
    command.args(if accelerated {
        ["-accel", "kvm", "-cpu", "host"]
    } else {
        ["-accel", "tcg,thread=multi", "-cpu", "max"]
    });
    command.arg("-kernel").arg(&image.kernel);
    // NVMe and ext4 are built into the kernel, so that it needs no initial file system.
    command.args(["-append", "root=/dev/nvme0n1 rw console=ttyS0 quiet panic=-1 apparmor=1 security=apparmor"]);
    for (name, file, mode) in [("machine", &image.disk, "snapshot=on"), ("job", &job.to_path_buf(), "readonly=on")] {
        command.arg("-drive").arg(format!("file={},format=raw,if=none,id={name},{mode}", file.display()));
        command.arg("-device").arg(format!("nvme,drive={name},serial={name}"));
    }
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-serial", "stdio"]);
    command.arg("-serial").arg(format!("file:{}", status.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Line by line, as they come.
fn print(mut output: impl BufRead) {
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        line.retain(|byte| *byte != b'\r');
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(&line).and_then(|()| out.flush());
        line.clear();
    }
}

/// Switched off when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
