//! Images as CRI shows them.

use knarr_cri_api::v1;

/// What the image store knows of one image.
#[derive(Debug, Clone, Default)]
pub struct ImageFacts {
    /// "sha256:…": the same text as PullImageResponse.image_ref and ContainerStatus.image_id.
    pub id: String,
    /// Every name with a tag.
    pub names: Vec<String>,
    /// Every name with a digest.
    pub digests: Vec<String>,
    /// Bytes on disk; clients refuse an image of size 0, so 1 is shown then.
    pub size: u64,
    /// USER of the image's configuration, as it stands there.
    pub user: String,
    /// Not to be collected by kubelet.
    pub pinned: bool,
}

/// An image in ListImages and ImageStatus.
pub fn image(facts: ImageFacts) -> v1::Image {
    let (uid, username) = uid_or_username(&facts.user);
    v1::Image {
        id: facts.id,
        repo_tags: facts.names,
        repo_digests: facts.digests,
        size: facts.size.max(1),
        uid: uid.map(|value| v1::Int64Value { value }),
        username,
        spec: None,
        pinned: facts.pinned,
    }
}

/// Kubelet's runAsNonRoot looks at these: a uid when the image names one, else the user's name, else neither, which
/// it takes for root. The group after the colon is no matter here. A number that is no uid is given as a name: kubelet
/// then refuses it where it matters, and so does CreateContainer.
pub fn uid_or_username(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    let digits = !user.is_empty() && user.bytes().all(|b| b.is_ascii_digit());
    match user.parse::<i32>() {
        Ok(uid) if digits => (Some(i64::from(uid)), String::new()),
        _ => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_uid_or_a_username_and_never_both() {
        for (user, uid, name) in [
            ("", None, ""),
            ("1002", Some(1002), ""),
            ("1002:3", Some(1002), ""),
            ("0", Some(0), ""),
            ("00", Some(0), ""),
            ("www-data", None, "www-data"),
            ("www-data:x", None, "www-data"),
            ("4294967296", None, "4294967296"),
            ("2147483648", None, "2147483648"),
            ("-1", None, "-1"),
            ("+1", None, "+1"),
            (":5", None, ""),
        ] {
            assert_eq!(uid_or_username(user), (uid, name.to_owned()), "{user:?}");
        }
    }

    #[test]
    fn no_image_has_size_zero() {
        assert_eq!(image(ImageFacts::default()).size, 1);
    }
}
