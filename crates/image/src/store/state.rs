//! What the store knows in memory: which images there are, what they are called, which layers somebody still needs.
//!
//! No I/O. The records on disk are written before the change is made here, and what this file calls doomed is deleted
//! by others afterwards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::record::{LayerKey, LayerRecord};
use super::{Image, Usage};
use crate::reference::{Digest, Reference};

/// A shorter beginning of an id is more likely a name that is not there: `cafe` is both.
const PREFIX_DIGITS_MIN: usize = 4;

/// A layer on disk.
#[derive(Debug)]
struct Known {
    record: LayerRecord,
    /// Pulls and exports that rely on it although no image may name it.
    uses: usize,
}

/// Everything that lists, finds and counts.
#[derive(Debug, Default)]
pub(crate) struct State {
    images: BTreeMap<Digest, Arc<Image>>,
    /// Removed, but containers stand on them.
    removed: BTreeMap<Digest, Arc<Image>>,
    layers: HashMap<LayerKey, Known>,
    leases: HashMap<Digest, usize>,
    /// Before the owner has said who holds what, nothing that nobody names may be deleted.
    settled: bool,
    /// Layers that a record may have named that is not readable any more: a running container may stand on them.
    spared: HashSet<LayerKey>,
    usage: Usage,
}

/// What can be deleted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Doomed {
    /// Removed images that nobody holds any more.
    pub images: Vec<Digest>,
    /// Layers that no image names and nobody uses.
    pub layers: Vec<LayerKey>,
}

impl State {
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.images.values().cloned().collect()
    }

    pub fn usage(&self) -> Usage {
        self.usage
    }

    pub fn image(&self, id: &Digest) -> Option<&Arc<Image>> {
        self.images.get(id)
    }

    /// An image whether it was removed or not.
    pub fn image_or_removed(&self, id: &Digest) -> Option<&Arc<Image>> {
        self.images.get(id).or_else(|| self.removed.get(id))
    }

    /// Puts an image in, in place of what was known under its id.
    pub fn insert_image(&mut self, id: Digest, image: Arc<Image>) {
        self.removed.remove(&id);
        self.images.insert(id, image);
    }

    /// Keeps a removed image for those who hold it.
    pub fn insert_removed(&mut self, id: Digest, image: Arc<Image>) {
        self.images.remove(&id);
        self.removed.insert(id, image);
    }

    pub fn forget_image(&mut self, id: &Digest) {
        self.images.remove(id);
        self.removed.remove(id);
    }

    /// A full id, a name with tag or digest in any form, or the unique beginning of an id; the first of these that is
    /// there. A name with both tag and digest means the digest.
    pub fn find(&self, text: &str) -> Option<Arc<Image>> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if is_hex && digits.len() == 64 {
            let id = Digest::parse(&format!("sha256:{digits}")).ok()?;
            return self.images.get(&id).cloned();
        }
        if let Ok(reference) = Reference::parse(text)
            && let Some(image) = self.find_reference(&reference)
        {
            return Some(image.clone());
        }
        if !is_hex || digits.len() < PREFIX_DIGITS_MIN {
            return None;
        }
        let mut matching = self.images.iter().filter(|(id, _)| id.hex().starts_with(digits)).map(|(_, image)| image);
        let first = matching.next()?;
        if matching.next().is_some() { None } else { Some(first.clone()) }
    }

    fn find_reference(&self, reference: &Reference) -> Option<&Arc<Image>> {
        match (&reference.digest, reference.repo_tag()) {
            (Some(digest), _) => {
                let wanted = reference.repo_digest(digest);
                self.images.values().find(|image| image.digests.contains(&wanted))
            }
            (None, Some(tag)) => self.owner_of(&tag),
            (None, None) => None,
        }
    }

    /// The image that has this tag, in full form.
    pub fn owner_of(&self, tag: &str) -> Option<&Arc<Image>> {
        self.images.values().find(|image| image.names.iter().any(|name| name == tag))
    }

    pub fn insert_layer(&mut self, record: LayerRecord) {
        self.usage.bytes += record.bytes;
        self.usage.inodes += record.inodes;
        self.layers.insert(record.key.clone(), Known { record, uses: 0 });
    }

    pub fn layer(&self, key: &LayerKey) -> Option<&LayerRecord> {
        self.layers.get(key).map(|known| &known.record)
    }

    /// The layer with this diff-id on top of the chain with this id; counts a use of it.
    pub fn use_layer(&mut self, diff_id: &Digest, chain_id: &Digest) -> Option<LayerKey> {
        let fits = |key: &LayerKey, known: &Known| match known.record.depends_on_lower {
            false => known.record.diff_id == *diff_id,
            true => LayerKey::of(chain_id).as_ref() == Some(key) && known.record.diff_id == *diff_id,
        };
        for key in [LayerKey::of(diff_id)?, LayerKey::of(chain_id)?] {
            if let Some(known) = self.layers.get_mut(&key)
                && fits(&key, known)
            {
                known.uses += 1;
                return Some(key);
            }
        }
        None
    }

    /// Counts a use of a layer that is known to be there.
    pub fn use_key(&mut self, key: &LayerKey) -> bool {
        self.layers.get_mut(key).map(|known| known.uses += 1).is_some()
    }

    /// Gives a use back.
    pub fn end_use(&mut self, key: &LayerKey) {
        if let Some(known) = self.layers.get_mut(key) {
            known.uses = known.uses.saturating_sub(1);
        }
    }

    /// Counts a lease of an image, listed or removed.
    pub fn hold(&mut self, id: &Digest) -> bool {
        let there = self.image_or_removed(id).is_some();
        if there {
            *self.leases.entry(id.clone()).or_default() += 1;
        }
        there
    }

    /// Gives a lease back.
    pub fn release(&mut self, id: &Digest) {
        if let Some(count) = self.leases.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                self.leases.remove(id);
            }
        }
    }

    pub fn is_held(&self, id: &Digest) -> bool {
        // Before that nobody has had the chance to say.
        !self.settled || self.leases.contains_key(id)
    }

    /// From now on, who does not hold a lease does not need the image.
    pub fn settle(&mut self) {
        self.settled = true;
    }

    /// Layers that nobody seems to need, but a broken record may have named.
    pub fn spare_unnamed(&mut self) {
        let named = self.named();
        self.spared = self.layers.keys().filter(|key| !named.contains(*key)).cloned().collect();
    }

    pub fn doomed(&self) -> Doomed {
        if !self.settled {
            return Doomed::default();
        }
        let images = self.removed.keys().filter(|id| !self.is_held(id)).cloned().collect();
        let named = self.named();
        let unused =
            |key: &LayerKey, known: &Known| known.uses == 0 && !named.contains(key) && !self.spared.contains(key);
        let layers = self.layers.iter().filter(|(key, known)| unused(key, known)).map(|(key, _)| key.clone()).collect();
        Doomed { images, layers }
    }

    /// Takes a layer out, if it is still nobody's.
    pub fn take_layer(&mut self, key: &LayerKey) -> bool {
        let unused = self.layers.get(key).is_some_and(|known| known.uses == 0);
        if !unused || self.named().contains(key) {
            return false;
        }
        if let Some(known) = self.layers.remove(key) {
            self.usage.bytes -= known.record.bytes;
            self.usage.inodes -= known.record.inodes;
        }
        true
    }

    fn named(&self) -> HashSet<&LayerKey> {
        self.images.values().chain(self.removed.values()).flat_map(|image| &image.layers).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ImageConfig;
    use std::time::SystemTime;

    fn digest(what: &str) -> Digest {
        Digest::sha256_of(what.as_bytes())
    }

    fn layer(what: &str, depends_on_lower: Option<&str>) -> LayerRecord {
        let key = LayerKey::of(&digest(depends_on_lower.unwrap_or(what))).unwrap();
        LayerRecord {
            version: 1,
            key,
            diff_id: digest(what),
            depends_on_lower: depends_on_lower.is_some(),
            archive_bytes: 1,
            bytes: 100,
            inodes: 10,
        }
    }

    fn image(what: &str, names: &[&str], layers: &[&str]) -> (Digest, Arc<Image>) {
        let id = digest(what);
        let image = Image {
            id: id.to_string(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            digests: vec![format!("docker.io/library/{what}@{}", digest(&format!("manifest of {what}")))],
            size: 1,
            unpacked_bytes: 1,
            config: Arc::new(ImageConfig::default()),
            config_bytes: Arc::from(&b"{}"[..]),
            layers: layers.iter().map(|layer| LayerKey::of(&digest(layer)).unwrap()).collect(),
            pinned: false,
            created_at: SystemTime::UNIX_EPOCH,
            sources: Vec::new(),
        };
        (id, Arc::new(image))
    }

    fn state() -> State {
        let mut state = State::default();
        for what in ["base", "one", "two"] {
            state.insert_layer(layer(what, None));
        }
        for (what, names, layers) in [
            ("a", &["docker.io/library/busybox:latest", "localhost/x:1"][..], &["base", "one"][..]),
            ("b", &["registry.k8s.io/pause:3.9"], &["base", "two"]),
        ] {
            let (id, image) = image(what, names, layers);
            state.insert_image(id, image);
        }
        state.settle();
        state
    }

    #[test]
    fn an_image_is_found_by_every_form_of_its_name() {
        let state = state();
        let a = digest("a");
        let by_digest = format!("a@{}", digest("manifest of a"));
        let tag_and_digest = format!("a:whatever@{}", digest("manifest of a"));
        for text in [
            "busybox",
            "busybox:latest",
            "docker.io/busybox",
            "docker.io/library/busybox:latest",
            "localhost/x:1",
            a.as_str(),
            a.hex(),
            &a.hex()[..12],
            &a.as_str()[..20],
            &by_digest,
            &tag_and_digest,
        ] {
            assert_eq!(state.find(text).map(|image| image.id.clone()), Some(a.to_string()), "{text}");
        }
        for text in ["busybox:1", "localhost/x", "", "sha256:", &a.hex()[..3], "sha512:abcd", "UPPER"] {
            assert!(state.find(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_name_goes_before_the_beginning_of_an_id() {
        let mut state = state();
        let a = digest("a");
        let name = format!("docker.io/library/{}:latest", &a.hex()[..8]);
        let (id, image) = image("named like an id", &[&name], &[]);
        state.insert_image(id.clone(), image);
        assert_eq!(state.find(&a.hex()[..8]).unwrap().id, id.to_string());
        assert_eq!(state.find(&a.hex()[..9]).unwrap().id, a.to_string());
    }

    #[test]
    fn a_beginning_that_two_ids_share_is_no_id() {
        let mut state = State::default();
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut shared = None;
        for number in 0..2000 {
            let what = number.to_string();
            let (id, image) = image(&what, &[], &[]);
            let prefix = id.hex()[..4].to_owned();
            if let Some(_first) = seen.insert(prefix.clone(), number) {
                shared = Some(prefix);
            }
            state.insert_image(id, image);
        }
        assert!(state.find(&shared.expect("2000 ids share a beginning of 16 bits")).is_none());
    }

    #[test]
    fn a_layer_goes_when_nobody_names_holds_or_uses_it() {
        let mut state = state();
        assert_eq!(state.doomed(), Doomed::default());
        state.forget_image(&digest("b"));
        let two = LayerKey::of(&digest("two")).unwrap();
        assert_eq!(state.doomed().layers, std::slice::from_ref(&two), "base is shared");

        assert_eq!(state.use_layer(&digest("two"), &digest("chain")), Some(two.clone()));
        assert_eq!(state.doomed(), Doomed::default(), "a pull relies on it");
        assert!(!state.take_layer(&two));
        state.end_use(&two);
        assert!(state.take_layer(&two));
        assert_eq!(state.usage(), Usage { bytes: 200, inodes: 20 });
    }

    #[test]
    fn a_removed_image_stays_while_it_is_held() {
        let mut state = state();
        let b = digest("b");
        assert!(state.hold(&b));
        let image = state.image(&b).unwrap().clone();
        state.insert_removed(b.clone(), image);
        assert!(state.find("registry.k8s.io/pause:3.9").is_none() && state.find(b.as_str()).is_none());
        assert_eq!(state.doomed(), Doomed::default());
        assert!(state.hold(&b), "another container may come to stand on it");
        state.release(&b);
        state.release(&b);
        assert_eq!(state.doomed().images, std::slice::from_ref(&b));
        state.forget_image(&b);
        assert_eq!(state.doomed().layers.len(), 1);
        assert!(!state.hold(&b));
    }

    #[test]
    fn nothing_goes_before_the_owner_has_said_what_it_holds() {
        let mut state = State::default();
        state.insert_layer(layer("orphan", None));
        let (id, image) = image("removed", &[], &[]);
        state.insert_removed(id, image);
        assert_eq!(state.doomed(), Doomed::default());
        state.spare_unnamed();
        state.settle();
        assert_eq!(state.doomed().images.len(), 1);
        assert!(state.doomed().layers.is_empty(), "a broken record may have named it");
    }

    #[test]
    fn a_layer_that_depends_on_lower_ones_is_only_itself_on_its_chain() {
        let mut state = State::default();
        state.insert_layer(layer("top", Some("chain of top")));
        assert!(state.use_layer(&digest("top"), &digest("other chain")).is_none());
        assert!(state.use_layer(&digest("top"), &digest("chain of top")).is_some());
        // As the lowest layer its chain is its diff-id; on top of others it is another layer.
        state.insert_layer(layer("bottom", Some("bottom")));
        assert!(state.use_layer(&digest("bottom"), &digest("bottom")).is_some());
        assert!(state.use_layer(&digest("bottom"), &digest("some chain")).is_none());
    }
}
