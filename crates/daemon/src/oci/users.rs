//! Who a container's processes are: what was asked for, looked up in the image's /etc/passwd and /etc/group.
//!
//! The files come in as bytes that are already limited (see [`FILE_BYTES_MAX`] and `beneath`); nothing is read here.
//! A text that looks like a number is parsed once and never looked up as a name: an image whose /etc/passwd has a
//! user called "4294967296" would otherwise run as root where a non-root uid was promised.

use knarr_model::Error;
use knarr_model::spec::{GroupsPolicy, RunAs};

/// Bytes of an image's /etc/passwd or /etc/group that are looked at; a larger one is an error.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of one line; longer ones do not count. A group of ten thousand members has about 100 KiB.
const LINE_BYTES_MAX: usize = 1 << 20;
/// The kernel's NGROUPS_MAX.
const GROUPS_MAX: usize = 65_536;
/// The highest uid or gid that is taken. The kernel has twice as many, but programs that count in signed numbers
/// take those for negative ones, and -1 means "leave it" to setresuid(2).
const ID_MAX: u32 = i32::MAX as u32;
/// Where a user without a home is at home.
const NO_HOME: &str = "/";

/// A user as the kernel and the environment need it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    /// user id
    pub uid: u32,
    /// primary group
    pub gid: u32,
    /// All supplementary groups, the primary one first among them.
    pub groups: Vec<u32>,
    /// Absolute; from /etc/passwd, else "/".
    pub home: String,
    /// From /etc/passwd; empty for a uid that is not in it.
    pub name: String,
}

/// Looks up whom to run as.
///
/// `image_user` is USER of the image's configuration ("", "uid", "name", each with ":group"); it counts only when the
/// request names no user. An error names the user and what is wrong with it.
pub fn resolve(
    run_as: &RunAs,
    run_as_group: Option<u32>,
    supplemental: &[u32],
    policy: GroupsPolicy,
    image_user: &str,
    passwd: &[u8],
    group: &[u8],
) -> Result<ResolvedUser, Error> {
    let (user, named_group) = match run_as {
        RunAs::Uid(uid) => (Asked::Id(checked_id("run_as_user", u64::from(*uid))?), None),
        RunAs::Name(name) => match Asked::parse("run_as_username", name)? {
            Asked::Id(_) => return Err(Error::invalid("run_as_username", format!("{name:?} is a number"))),
            user @ Asked::Name(_) => (user, None),
        },
        RunAs::Image => parse_image_user(image_user)?,
    };
    let entry = find_user(passwd, user);
    if let (Asked::Name(name), None) = (user, &entry) {
        return Err(Error::invalid("user", format!("{name:?} is not in the image's /etc/passwd")));
    }
    let uid = match (user, &entry) {
        (Asked::Id(uid), _) => uid,
        (Asked::Name(_), Some(entry)) => entry.uid,
        (Asked::Name(_), None) => 0,
    };
    let gid = match (run_as_group, named_group) {
        (Some(gid), _) => checked_id("run_as_group", u64::from(gid))?,
        (None, Some(named)) => find_group(group, named)?,
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let name = entry.as_ref().map_or("", |entry| entry.name);
    let of_image = match policy {
        GroupsPolicy::Merge => groups_of(group, name),
        GroupsPolicy::Strict => Vec::new(),
    };
    Ok(ResolvedUser {
        uid,
        gid,
        groups: all_groups(gid, &of_image, supplemental)?,
        home: entry.as_ref().and_then(|entry| entry.home).unwrap_or(NO_HOME).to_owned(),
        name: name.to_owned(),
    })
}

/// A user or group before it has been looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked<'a> {
    Id(u32),
    Name(&'a str),
}

impl<'a> Asked<'a> {
    fn parse(field: &str, text: &'a str) -> Result<Self, Error> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            // So many digits that not even u64 holds them are certainly too many.
            return Ok(Self::Id(checked_id(field, text.parse().unwrap_or(u64::MAX))?));
        }
        if looks_like_a_number(text) {
            return Err(Error::invalid(field, format!("{text:?} is neither a plain number nor a name")));
        }
        if let Some(bad) = text.chars().find(|c| c.is_control() || c.is_whitespace() || matches!(c, ':' | ',')) {
            return Err(Error::invalid(field, format!("{text:?} holds {bad:?}")));
        }
        Ok(Self::Name(text))
    }
}

/// "-1", "+5", "0x0", "1e3", "1_000", "0.5": some program's number, though not ours.
fn looks_like_a_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let prefixed = ["0x", "0X", "0o", "0O", "0b", "0B"].iter().any(|prefix| unsigned.starts_with(prefix));
    let digits = unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'_' | b'.'));
    unsigned.len() < text.len()
        || unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && (prefixed || digits || unsigned.parse::<f64>().is_ok())
}

fn checked_id(field: &str, id: u64) -> Result<u32, Error> {
    match u32::try_from(id) {
        Ok(id @ 0..=ID_MAX) => Ok(id),
        _ => Err(Error::invalid(field, format!("the id is not between 0 and {ID_MAX}"))),
    }
}

/// "", "user" or "user:group"; an empty part is not said.
fn parse_image_user(text: &str) -> Result<(Asked<'_>, Option<Asked<'_>>), Error> {
    const FIELD: &str = "the image's user";
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let user = if user.is_empty() { Asked::Id(0) } else { Asked::parse(FIELD, user)? };
    let group = if group.is_empty() { None } else { Some(Asked::parse("the image's group", group)?) };
    Ok((user, group))
}

/// What of a line of /etc/passwd counts.
#[derive(Debug, Clone, Copy)]
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: Option<&'a str>,
}

/// Lines of passwd or group files as fields. Comments and the `+`/`-` lines of NIS are none.
fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    file.split(|b| *b == b'\n')
        .filter(|line| (1..=LINE_BYTES_MAX).contains(&line.len()) && !line.starts_with(b"#"))
        .filter(|line| !line.starts_with(b"+") && !line.starts_with(b"-"))
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.trim_end_matches('\r').split(':').collect())
}

fn id_field(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= ID_MAX)
}

/// The first line that fits, as getpwnam(3) does it.
fn find_user<'a>(passwd: &'a [u8], asked: Asked<'_>) -> Option<PasswdEntry<'a>> {
    lines(passwd)
        .filter_map(|fields| {
            let [name, _, uid, gid, rest @ ..] = fields.as_slice() else { return None };
            let home = rest.get(1).copied().filter(|home| home.starts_with('/') && !home.contains(char::is_control));
            let entry = PasswdEntry { name, uid: id_field(uid)?, gid: id_field(gid)?, home };
            (!entry.name.is_empty()).then_some(entry)
        })
        .find(|entry| match asked {
            Asked::Id(uid) => entry.uid == uid,
            Asked::Name(name) => entry.name == name,
        })
}

fn find_group(group: &[u8], asked: Asked<'_>) -> Result<u32, Error> {
    let name = match asked {
        Asked::Id(gid) => return Ok(gid),
        Asked::Name(name) => name,
    };
    lines(group)
        .find_map(|fields| match fields.as_slice() {
            [found, _, gid, ..] if *found == name => id_field(gid),
            _ => None,
        })
        .ok_or_else(|| Error::invalid("group", format!("{name:?} is not in the image's /etc/group")))
}

/// Every group that has `name` among its members.
fn groups_of(group: &[u8], name: &str) -> Vec<u32> {
    if name.is_empty() {
        return Vec::new();
    }
    lines(group)
        .filter_map(|fields| match fields.as_slice() {
            [_, _, gid, members, ..] if members.split(',').any(|member| member == name) => id_field(gid),
            _ => None,
        })
        .collect()
}

/// The primary group is among the supplementary ones: a set-group-id program could drop it otherwise and get past
/// files that deny just that group.
fn all_groups(gid: u32, of_image: &[u32], supplemental: &[u32]) -> Result<Vec<u32>, Error> {
    let mut seen = std::collections::HashSet::new();
    let groups: Vec<u32> = std::iter::once(gid)
        .chain(of_image.iter().copied())
        .chain(supplemental.iter().copied())
        .filter(|gid| seen.insert(*gid))
        .collect();
    if groups.len() > GROUPS_MAX {
        let why = format!("{} with those of the image, at most {GROUPS_MAX} are possible", groups.len());
        return Err(Error::invalid("supplemental_groups", why));
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment:x:7:7::/:/\n\
        +nis:x:8:8::/:/\n\
        www-data:x:33:34:www:/var/www:/usr/sbin/nologin\r\n\
        4294967296:x:0:0::/evil:\n\
        2147483648:x:0:0::/evil:\n\
        1000:x:0:0::/evil:\n\
        -1:x:0:0::/evil:\n\
        1e3:x:0:0::/evil:\n\
        0x0:x:0:0::/evil:\n\
        bob:x:1001:1002::relative:\n\
        bob:x:0:0::/second:\n\
        short:x:5\n\
        huge:x:4294967295:0::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nstaff:x:50:bob,www-data\nadm:x:4:bob\nbobby:x:60:bobb\n1e3:x:0:\nempty:x::bob\n";

    fn image(user: &str) -> Result<ResolvedUser, Error> {
        resolve(&RunAs::Image, None, &[], GroupsPolicy::Merge, user, PASSWD, GROUP)
    }

    #[test]
    fn every_form_of_the_images_user_is_resolved() {
        for (user, uid, gid, groups, home) in [
            ("", 0, 0, vec![0], "/root"),
            ("0", 0, 0, vec![0], "/root"),
            ("00", 0, 0, vec![0], "/root"),
            ("root", 0, 0, vec![0], "/root"),
            ("33", 33, 34, vec![34, 50], "/var/www"),
            ("www-data", 33, 34, vec![34, 50], "/var/www"),
            ("www-data:4", 33, 4, vec![4, 50], "/var/www"),
            ("www-data:staff", 33, 50, vec![50], "/var/www"),
            ("1002:3", 1002, 3, vec![3], "/"),
            ("1002", 1002, 0, vec![0], "/"),
            ("1000", 1000, 0, vec![0], "/"),
            ("bob", 1001, 1002, vec![1002, 50, 4], "/"),
            ("bob:", 1001, 1002, vec![1002, 50, 4], "/"),
            (":4", 0, 4, vec![4], "/root"),
            ("2147483647", 2_147_483_647, 0, vec![0], "/"),
        ] {
            let got = image(user).unwrap_or_else(|error| panic!("{user:?}: {error}"));
            assert_eq!((got.uid, got.gid, got.home.as_str()), (uid, gid, home), "{user:?}");
            assert_eq!(got.groups, groups, "{user:?}");
        }
    }

    #[test]
    fn no_number_is_ever_looked_up_as_a_name() {
        for user in [
            "4294967296",
            "4294967295",
            "2147483648",
            "99999999999999999999",
            "-1",
            "+1",
            "1e3",
            "0x0",
            "1_000",
            "1.5",
            ".5",
            "4294967296:0",
            "0:4294967296",
            "0:-1",
            "0:1e3",
        ] {
            assert!(image(user).is_err(), "{user:?} became {:?}", image(user));
        }
        let by_name = |name: &str| {
            resolve(&RunAs::Name(name.into()), None, &[], GroupsPolicy::Merge, "", PASSWD, GROUP).map(|user| user.uid)
        };
        for name in ["1000", "0", "4294967296", "-1", "1e3", "0x0"] {
            assert!(by_name(name).is_err(), "{name:?}");
        }
        assert_eq!(by_name("www-data"), Ok(33));
    }

    #[test]
    fn a_name_that_only_begins_with_a_digit_is_a_name() {
        let passwd = b"389ds:x:389:389::/:\n";
        let got = resolve(&RunAs::Image, None, &[], GroupsPolicy::Merge, "389ds", passwd, b"").unwrap();
        assert_eq!(got.uid, 389);
    }

    #[test]
    fn unknown_names_are_errors_and_say_where_they_were_looked_for() {
        assert!(image("alice").unwrap_err().message.contains("/etc/passwd"));
        assert!(image("0:wheel").unwrap_err().message.contains("/etc/group"));
        assert!(image("short").is_err(), "a line without a group is no entry");
        assert!(image("huge").is_err(), "a line with an id that cannot be is no entry");
        assert!(image("a b").is_err());
        assert!(image("root\nx").is_err());
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let asked = |run_as, group, extra: &[u32], policy| {
            resolve(&run_as, group, extra, policy, "www-data:staff", PASSWD, GROUP).unwrap()
        };
        let got = asked(RunAs::Uid(1001), None, &[7, 50, 7], GroupsPolicy::Merge);
        assert_eq!((got.uid, got.gid, got.groups), (1001, 1002, vec![1002, 50, 4, 7]));
        let got = asked(RunAs::Uid(1001), Some(9), &[7], GroupsPolicy::Merge);
        assert_eq!((got.gid, got.groups), (9, vec![9, 50, 4, 7]));
        let got = asked(RunAs::Uid(1001), None, &[7], GroupsPolicy::Strict);
        assert_eq!((got.gid, got.groups), (1002, vec![1002, 7]), "the image's groups do not count");
        let got = asked(RunAs::Uid(4000), None, &[], GroupsPolicy::Merge);
        assert_eq!((got.gid, got.groups, got.name.as_str()), (0, vec![0], ""));
    }

    #[test]
    fn too_many_groups_are_an_error() {
        let group: String = (0..=GROUPS_MAX).map(|gid| format!("g{gid}:x:{gid}:bob\n")).collect();
        let got = resolve(&RunAs::Image, None, &[], GroupsPolicy::Merge, "bob", PASSWD, group.as_bytes());
        assert!(got.is_err());
    }

    proptest! {
        #[test]
        fn no_file_makes_the_lookup_panic(user in ".{0,12}", passwd: Vec<u8>, group: Vec<u8>) {
            let _ = resolve(&RunAs::Image, None, &[], GroupsPolicy::Merge, &user, &passwd, &group);
        }

        #[test]
        fn the_primary_group_is_always_first_and_none_is_there_twice(
            user in prop_oneof![Just("bob".to_owned()), Just("www-data:staff".to_owned()), "[0-9]{1,4}"],
            extra in prop::collection::vec(0_u32..100, 0..20),
        ) {
            let got = resolve(&RunAs::Image, None, &extra, GroupsPolicy::Merge, &user, PASSWD, GROUP).unwrap();
            prop_assert_eq!(got.groups[0], got.gid);
            let unique: std::collections::HashSet<_> = got.groups.iter().collect();
            prop_assert_eq!(unique.len(), got.groups.len());
        }
    }
}
