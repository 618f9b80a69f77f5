//! Whose ids a user namespace has: ranges of its own ids and the host's ids that they are.

/// One range of uids or of gids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IdMap {
    /// The first id of the range on the host.
    pub host: u32,
    /// The same one in the namespace.
    pub container: u32,
    /// How many there are; the ends of both ranges exist.
    pub length: u32,
}

impl IdMap {
    /// What an id of the namespace is on the host; `None` if it is not mapped.
    pub fn to_host(&self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.container).filter(|offset| *offset < self.length)?;
        self.host.checked_add(offset)
    }

    /// The highest id of the namespace that is mapped, if any is.
    pub fn last(&self) -> Option<u32> {
        self.container.checked_add(self.length.checked_sub(1)?)
    }
}

/// A pod's user namespace. Its root (uid and gid 0) is always mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UserNamespace {
    /// its uids
    pub uids: IdMap,
    /// its gids
    pub gids: IdMap,
}

impl UserNamespace {
    /// The namespace's root on the host, as (uid, gid).
    pub fn root(&self) -> Option<(u32, u32)> {
        Some((self.uids.to_host(0)?, self.gids.to_host(0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_beyond_the_range_are_nobody() {
        let map = IdMap { host: 100_000, container: 0, length: 65_536 };
        assert_eq!(map.to_host(0), Some(100_000));
        assert_eq!(map.to_host(65_535), Some(165_535));
        assert_eq!(map.to_host(65_536), None);
        assert_eq!(map.last(), Some(65_535));
        let shifted = IdMap { host: 5, container: 10, length: 2 };
        assert_eq!((shifted.to_host(9), shifted.to_host(11), shifted.to_host(12)), (None, Some(6), None));
        assert_eq!(IdMap::default().last(), None);
    }

    #[test]
    fn the_end_of_all_ids_is_no_overflow() {
        let map = IdMap { host: u32::MAX - 1, container: 0, length: 2 };
        assert_eq!(map.to_host(1), Some(u32::MAX));
        let beyond = IdMap { length: 5, ..map };
        assert_eq!(beyond.to_host(4), None);
    }
}
