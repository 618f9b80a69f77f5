//! Which pod has which address: one file per pod, named by its IPv4 address, that says which pod that is.
//!
//! ```text
//! <state_dir>/addresses/10.85.0.7        the pod's record, by a hard link
//! <state_dir>/last-address               where the search goes on, rounded up
//! ```
//!
//! A link is made only where there is no file, so that two daemons on one state directory cannot give an address out
//! twice. A pod's IPv6 address is at the same distance from its subnet's start as its IPv4 address: one search finds
//! both, and one name guards both. The name outlives the record: it goes when the pod's link has gone, which `departures`
//! sees. (It is no file of its own because making one takes 0.3 ms where ext4 has just seen many deleted.)

use knarr_model::{Error, ErrorKind, PodId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Fewest host bits of a subnet: network, bridge, broadcast and one pod need 2, and a /30 is already a joke.
const HOST_BITS_MIN: u8 = 2;
/// Most IPv4 host bits; a larger subnet would swallow networks that the host must reach.
const HOST_BITS_MAX: u8 = 24;

/// How many addresses are given out between two notes of where the search is. A new life goes on behind the note: it
/// may pass over so many, never give one of them again too early.
const NOTE_EVERY: u32 = 64;

/// A subnet of one family, its host bits zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::network) struct Subnet {
    network: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// Takes `address/prefix`; host bits must be zero.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| format!("{text:?} is no subnet: {why}");
        let (address, prefix) = text.trim().split_once('/').ok_or_else(|| refuse("no prefix length"))?;
        let network: IpAddr = address.parse().map_err(|_| refuse("no address before the slash"))?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse("the prefix length is no number"))?;
        let bits = if network.is_ipv4() { 32 } else { 128 };
        if prefix > bits - HOST_BITS_MIN {
            return Err(refuse("it has no room for pods"));
        }
        if network.is_ipv4() && bits - prefix > HOST_BITS_MAX {
            return Err(refuse("larger than a /8"));
        }
        let subnet = Self { network, prefix };
        if subnet.at(0) != network || subnet.mask(network) != network {
            return Err(refuse("bits are set behind the prefix"));
        }
        Ok(subnet)
    }

    /// The subnet's own address.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// Length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The bridge's address: the first one.
    pub fn gateway(&self) -> IpAddr {
        self.at(1)
    }

    /// Whether the address lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.network.is_ipv4() && self.mask(address) == self.network
    }

    /// The address at a distance from the start.
    fn at(&self, offset: u32) -> IpAddr {
        match self.network {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).wrapping_add(offset)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).wrapping_add(offset.into())).into(),
        }
    }

    /// The netmask as bytes, as long as an address of the family.
    pub fn netmask(&self) -> Vec<u8> {
        match self.network {
            IpAddr::V4(_) => u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0).to_be_bytes().to_vec(),
            IpAddr::V6(_) => u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0).to_be_bytes().to_vec(),
        }
    }

    fn mask(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix.into())).unwrap_or(0);
                Ipv4Addr::from(u32::from(v4) & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                Ipv6Addr::from(u128::from(v6) & mask).into()
            }
        }
    }

    fn host_bits(&self) -> u8 {
        if self.network.is_ipv4() { 32 - self.prefix } else { 128 - self.prefix }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// The subnets that new addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::network) struct Subnets {
    pub v4: Subnet,
    pub v6: Option<Subnet>,
}

impl Subnets {
    /// Checks that each has its family and that the IPv6 one is at least as roomy.
    pub fn new(v4: Subnet, v6: Option<Subnet>) -> Result<Self, String> {
        if !v4.network.is_ipv4() {
            return Err(format!("{v4} is no IPv4 subnet"));
        }
        if let Some(v6) = v6 {
            if v6.network.is_ipv4() {
                return Err(format!("{v6} is no IPv6 subnet"));
            }
            if v6.host_bits() < v4.host_bits() {
                return Err(format!("{v6} has fewer addresses than {v4}"));
            }
        }
        Ok(Self { v4, v6 })
    }

    /// IPv4 first.
    pub fn each(&self) -> impl Iterator<Item = Subnet> + use<> {
        std::iter::once(self.v4).chain(self.v6)
    }

    /// Largest offset that a pod can have: all ones is IPv4's broadcast address.
    fn last_offset(&self) -> u32 {
        (1_u32 << self.v4.host_bits()) - 2
    }
}

/// All addresses given out on this node.
#[derive(Debug)]
pub(in crate::network) struct Addresses {
    folder: PathBuf,
    last_file: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    subnets: Subnets,
    holders: HashMap<IpAddr, PodId>,
    last: u32,
}

impl Addresses {
    /// Reads which addresses are given out; `holder` reads a record. A file that is no record was cut off when the power
    /// went, with all that used the address: it is removed.
    pub fn open(
        state_dir: &Path,
        subnets: Subnets,
        holder: impl Fn(&Path) -> Option<(PodId, Vec<IpAddr>)>,
    ) -> Result<Self, Error> {
        let folder = state_dir.join("addresses");
        let failed = |e: io::Error| Error::internal(format!("reading {}: {e}", folder.display()));
        fs::create_dir_all(&folder).map_err(failed)?;
        let mut holders = HashMap::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse::<IpAddr>().ok()) else {
                continue;
            };
            match holder(&entry.path()) {
                Some((pod, addresses)) if addresses.contains(&address) => {
                    holders.extend(addresses.into_iter().map(|address| (address, pod.clone())));
                }
                _ => fs::remove_file(entry.path()).map_err(failed)?,
            }
        }
        let last_file = state_dir.join("last-address");
        let noted = fs::read_to_string(&last_file).ok().and_then(|text| text.trim().parse().ok());
        let last = noted.unwrap_or(1).min(subnets.last_offset());
        Ok(Self { folder, last_file, state: Mutex::new(State { subnets, holders, last }) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the pod an address of each family, IPv4 first. The search goes on behind the last one given, so that an
    /// address rests as long as possible before another pod answers under it. `record` writes the file that says who has
    /// them, and gives its path.
    pub fn allocate(
        &self,
        pod: &PodId,
        mut record: impl FnMut(&[(IpAddr, Subnet)]) -> Result<PathBuf, Error>,
    ) -> Result<Vec<(IpAddr, Subnet)>, Error> {
        let mut state = self.lock();
        let subnets = state.subnets;
        let last_offset = subnets.last_offset();
        let mut offset = state.last;
        for _ in 2..=last_offset {
            offset = if offset >= last_offset { 2 } else { (offset + 1).max(2) };
            let wanted: Vec<(IpAddr, Subnet)> = subnets.each().map(|subnet| (subnet.at(offset), subnet)).collect();
            if wanted.iter().any(|(address, _)| state.holders.contains_key(address)) {
                continue;
            }
            if self.claim(&mut state, pod, &wanted, &record(&wanted)?)? {
                if offset.is_multiple_of(NOTE_EVERY) || offset < state.last || state.last == 1 {
                    // Losing this number costs only an early reuse.
                    let _ = fs::write(&self.last_file, (offset + NOTE_EVERY).to_string());
                }
                state.last = offset;
                return Ok(wanted);
            }
        }
        let count = state.holders.len();
        let pods = state.holders.values().collect::<HashSet<_>>().len();
        let message = format!("no free address in {} for pod {pod}: {pods} pods hold {count} addresses", subnets.v4);
        Err(Error::new(ErrorKind::ResourceExhausted, message))
    }

    /// Makes the link; false if there is a file of that name.
    fn claim(&self, state: &mut State, pod: &PodId, wanted: &[(IpAddr, Subnet)], record: &Path) -> Result<bool, Error> {
        let Some((first, _)) = wanted.first() else { return Ok(false) };
        let path = self.folder.join(first.to_string());
        match fs::hard_link(record, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(Error::internal(format!("making {}: {error}", path.display()))),
        }
        state.holders.extend(wanted.iter().map(|(address, _)| (*address, pod.clone())));
        Ok(true)
    }

    /// The pod's addresses, IPv4 first.
    pub fn of(&self, pod: &PodId) -> Vec<IpAddr> {
        let state = self.lock();
        let mut found: Vec<IpAddr> =
            state.holders.iter().filter(|(_, holder)| *holder == pod).map(|(address, _)| *address).collect();
        found.sort_unstable();
        found
    }

    /// Every pod that has an address.
    pub fn holders(&self) -> HashSet<PodId> {
        self.lock().holders.values().cloned().collect()
    }

    /// Lets the addresses of a pod be given out again.
    pub fn release(&self, pod: &PodId) -> Result<(), Error> {
        let mut state = self.lock();
        let mut failures = Vec::new();
        state.holders.retain(|address, holder| {
            if holder != pod {
                return true;
            }
            if address.is_ipv6() {
                return false;
            }
            match fs::remove_file(self.folder.join(address.to_string())) {
                Ok(()) => false,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => {
                    failures.push(format!("{address}: {error}"));
                    true
                }
            }
        });
        if failures.is_empty() {
            return Ok(());
        }
        Err(Error::internal(format!("returning the addresses of pod {pod}: {}", failures.join("; "))))
    }

    /// The subnets in use.
    pub fn subnets(&self) -> Subnets {
        self.lock().subnets
    }

    /// New addresses come from other subnets; those given out stay.
    pub fn set_subnets(&self, subnets: Subnets) {
        let mut state = self.lock();
        state.subnets = subnets;
        state.last = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pod(n: u8) -> PodId {
        PodId::from_bytes(&[n; 32])
    }

    fn subnets(v4: &str, v6: Option<&str>) -> Subnets {
        Subnets::new(Subnet::parse(v4).unwrap(), v6.map(|v6| Subnet::parse(v6).unwrap())).unwrap()
    }

    /// A record as simple as can be: the id, then the addresses.
    fn open(dir: &Path, subnets: Subnets) -> Addresses {
        let holder = |path: &Path| {
            let text = fs::read_to_string(path).ok()?;
            let mut words = text.split_whitespace();
            let pod = PodId::parse(words.next()?).ok()?;
            Some((pod, words.filter_map(|word| word.parse().ok()).collect()))
        };
        Addresses::open(dir, subnets, holder).unwrap()
    }

    fn allocate(dir: &Path, addresses: &Addresses, pod: &PodId) -> Result<Vec<IpAddr>, Error> {
        let given = addresses.allocate(pod, |wanted| {
            let path = dir.join(pod.as_str());
            let words: Vec<String> = wanted.iter().map(|(address, _)| address.to_string()).collect();
            let _ = fs::remove_file(&path);
            fs::write(&path, format!("{pod} {}", words.join(" "))).unwrap();
            Ok(path)
        })?;
        Ok(given.into_iter().map(|(address, _)| address).collect())
    }

    #[test]
    fn a_pods_addresses_have_the_same_distance_from_their_subnets_start() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = open(dir.path(), subnets("10.9.0.0/24", Some("fd00:9::/64")));
        let given: Vec<String> =
            allocate(dir.path(), &addresses, &pod(1)).unwrap().iter().map(IpAddr::to_string).collect();
        assert_eq!(given, ["10.9.0.2", "fd00:9::2"]);
    }

    #[test]
    fn a_released_address_is_the_last_to_be_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = open(dir.path(), subnets("10.9.0.0/29", None));
        let first = allocate(dir.path(), &addresses, &pod(1)).unwrap();
        addresses.release(&pod(1)).unwrap();
        // .1 is the bridge, .7 broadcast: five addresses for pods.
        for n in 2..=5 {
            assert_ne!(allocate(dir.path(), &addresses, &pod(n)).unwrap(), first);
        }
        assert_eq!(allocate(dir.path(), &addresses, &pod(6)).unwrap(), first);
        let error = allocate(dir.path(), &addresses, &pod(7)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ResourceExhausted);
        assert!(error.message.contains("10.9.0.0/29"), "{error}");
    }

    #[test]
    fn a_new_life_knows_what_was_given_out_and_where_the_search_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let subnets = subnets("10.9.0.0/24", Some("fd00:9::/64"));
        let first = open(dir.path(), subnets);
        allocate(dir.path(), &first, &pod(1)).unwrap();
        allocate(dir.path(), &first, &pod(2)).unwrap();
        first.release(&pod(2)).unwrap();
        fs::write(dir.path().join("addresses/10.9.0.77"), "").unwrap();
        let second = open(dir.path(), subnets);
        assert_eq!(second.of(&pod(1)).len(), 2);
        let third = allocate(dir.path(), &second, &pod(3)).unwrap()[0];
        assert!(third > IpAddr::from([10, 9, 0, 3]), "{third} was given out only a moment ago");
        assert!(!dir.path().join("addresses/10.9.0.77").exists(), "an address without a holder stays taken for ever");
    }

    #[test]
    fn subnets_that_cannot_work_are_refused() {
        for bad in ["", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/31", "0.0.0.0/0", "fd00::1/64", "x/8", "10.0.0.0/33"] {
            assert!(Subnet::parse(bad).is_err(), "{bad}");
        }
        let narrow = Subnets::new(Subnet::parse("10.0.0.0/16").unwrap(), Some(Subnet::parse("fd00::/120").unwrap()));
        assert!(narrow.is_err());
    }

    proptest! {
        #[test]
        fn no_address_is_held_twice(steps in proptest::collection::vec((0_u8..12, any::<bool>()), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let addresses = open(dir.path(), subnets("10.9.0.0/28", None));
            let mut model: HashMap<u8, IpAddr> = HashMap::new();
            for (n, take) in steps {
                if take && !model.contains_key(&n) {
                    let given = allocate(dir.path(), &addresses, &pod(n)).unwrap()[0];
                    prop_assert!(!model.values().any(|held| *held == given));
                    prop_assert!(Subnet::parse("10.9.0.0/28").unwrap().contains(given));
                    model.insert(n, given);
                } else if !take {
                    addresses.release(&pod(n)).unwrap();
                    model.remove(&n);
                }
            }
        }
    }
}
