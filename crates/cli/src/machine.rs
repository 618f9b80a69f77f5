//! The few facts about this machine that a pod is told or measured by.

use std::path::Path;

use crate::pod_manifest::sandbox_config::parse_resolv_conf;
use crate::pod_manifest::schema::Dns;

/// This machine's host name.
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Its memory in bytes; 0 where the kernel does not say.
pub fn memory_bytes() -> i64 {
    std::fs::read_to_string("/proc/meminfo").map(|text| parse_meminfo(&text)).unwrap_or(0)
}

fn parse_meminfo(text: &str) -> i64 {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1_024)
}

/// Its processors.
pub fn cpus() -> i64 {
    std::thread::available_parallelism().ok().and_then(|count| i64::try_from(count.get()).ok()).unwrap_or(1)
}

/// How this machine resolves names. systemd-resolved's stub listens on an address of the host alone, which no pod reaches;
/// behind it is a file with the real servers.
pub fn dns() -> Dns {
    const STUB: &str = "127.0.0.53";
    const BEHIND_THE_STUB: &str = "/run/systemd/resolve/resolv.conf";
    let read = |path: &str| parse_resolv_conf(&std::fs::read_to_string(Path::new(path)).unwrap_or_default());
    let dns = read("/etc/resolv.conf");
    let only_the_stub = !dns.servers.is_empty() && dns.servers.iter().all(|server| server == STUB);
    if only_the_stub && Path::new(BEHIND_THE_STUB).exists() { read(BEHIND_THE_STUB) } else { dns }
}

/// A new random uid in the usual form.
pub fn new_uid() -> std::io::Result<String> {
    let mut bytes = [0_u8; 16];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if count != bytes.len() {
        return Err(std::io::Error::other("the kernel gave too few random bytes"));
    }
    // Version 4, variant 1 of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(parse_meminfo("MemTotal:       16337120 kB\nMemFree: 1 kB\n"), 16_337_120 * 1_024);
        assert_eq!(parse_meminfo("nothing"), 0);
        assert!(memory_bytes() > 0);
    }

    #[test]
    fn uids_are_random_and_well_formed() {
        let (a, b) = (new_uid().unwrap(), new_uid().unwrap());
        assert_ne!(a, b);
        let parts: Vec<usize> = a.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&a[14..15], "4");
    }
}
