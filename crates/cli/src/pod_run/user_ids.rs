//! Which ids of the host a pod has that must not have the host's own (hostUsers: false), as kubelet would choose them.
//!
//! Nothing is written down: the runtime says of each of its pods which ids it has. Two pods that are started in the same
//! moment begin to look at places of their own, so that they do not find the same ones free.

use knarr_cri_api::v1;

use crate::client::Client;
use crate::failure::Failure;
use crate::fan_out;

/// How many ids a pod gets: what kubelet gives, and what images are made for.
const LENGTH: u32 = 65_536;

/// The first and last block of so many ids that pods of `knarr run` are given: the upper part of what systemd sets apart
/// for containers (ids up to 1879048191). Kubelet begins at the lower end.
const BLOCKS: std::ops::RangeInclusive<u32> = 16_384..=28_671;

/// Ids of the host that no pod of this runtime has.
pub async fn choose(client: &Client, pod: &str, uid: &str) -> Result<v1::UserNamespace, Failure> {
    let host_id = free(uid, &taken(client).await?)
        .ok_or_else(|| Failure::new(format!("cannot run pod {pod}: no ids are left for its user namespace")))?;
    let ids = vec![v1::IdMapping { host_id, container_id: 0, length: LENGTH }];
    Ok(v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids })
}

/// (first, how many) of every pod's ids.
async fn taken(client: &Client) -> Result<Vec<(u32, u32)>, Failure> {
    let pods = client.list_pod_sandbox("list pods", v1::ListPodSandboxRequest { filter: None }).await?.items;
    let statuses = fan_out::each(pods, |pod| {
        let client = client.clone();
        async move { client.pod(&pod.id).await }
    });
    let mut taken = Vec::new();
    for status in statuses.await.into_iter().flatten() {
        // One that is gone meanwhile has given its ids back.
        let options = status?.and_then(|status| status.linux?.namespaces?.options?.userns_options);
        let options = options.unwrap_or_default();
        taken.extend(options.uids.iter().chain(&options.gids).map(|map| (map.host_id, map.length)));
    }
    Ok(taken)
}

/// The first of a block of ids of which none is taken, beginning at a place that follows from the pod's random uid.
fn free(uid: &str, taken: &[(u32, u32)]) -> Option<u32> {
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    let random = u32::from_str_radix(&digits, 16).unwrap_or(0);
    let count = BLOCKS.end() - BLOCKS.start() + 1;
    let blocks = (0..count).map(|step| BLOCKS.start() + (random % count + step) % count);
    let is_free = |first: &u32| {
        let end = |first: u32, length: u32| u64::from(first) + u64::from(length);
        !taken
            .iter()
            .any(|(other, length)| u64::from(*other) < end(*first, LENGTH) && u64::from(*first) < end(*other, *length))
    };
    blocks.map(|block| block * LENGTH).find(is_free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_chosen_by_chance_and_no_taken_one() {
        let first = free("00000000-aaaa", &[]).unwrap();
        assert_eq!(first, BLOCKS.start() * LENGTH);
        assert_ne!(free("00000001", &[]), Some(first));
        assert_eq!(free("00000000", &[(first, LENGTH)]), Some(first + LENGTH));
        // One id at either end is enough.
        assert_eq!(free("00000000", &[(first + LENGTH - 1, 1)]), Some(first + LENGTH));
        assert_eq!(free("00000000", &[(first - 10, 11)]), Some(first + LENGTH));
        assert_eq!(free("00000000", &[(first - 10, 10), (first + LENGTH, 5)]), Some(first));
        assert_eq!(free("no digits", &[(0, u32::MAX)]), None);
    }

    #[test]
    fn the_last_block_ends_before_what_is_not_for_containers() {
        let last = free(&format!("{:08x}", BLOCKS.end() - BLOCKS.start()), &[]).unwrap();
        assert_eq!(last, BLOCKS.end() * LENGTH);
        assert_eq!(last + (LENGTH - 1), 1_879_048_191);
    }
}
