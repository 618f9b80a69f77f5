//! How a section of the configuration is written down: one list gives the type, its defaults and its manual.
//! It knows no particular key; those are in `mod.rs`.

/// One key or one section of a section, as the manual shows it.
#[derive(Debug)]
pub struct Entry {
    /// The key's name in the file.
    pub name: &'static str,
    /// Its doc comment, line by line.
    pub doc: &'static [&'static str],
    /// The entries below it, where it is a section and no value.
    pub section: Option<&'static [Entry]>,
}

/// A part of the configuration that can list its own keys.
pub trait Section {
    /// What the section as a whole is about.
    const DOC: &'static [&'static str];
    /// Keys first, in the order of the file; then sections.
    const ENTRIES: &'static [Entry];
}

/// Declares a section: `key: Type = default` lines, then its own sections after `with`.
///
/// A doc comment here is the manual's text, so there is no key without one.
macro_rules! section {
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident {
            $( $(#[doc = $key_doc:literal])+ $key:ident: $key_type:ty = $default:expr, )*
        } $( with {
            $( $sub:ident: $sub_type:ty, )*
        } )?
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $( $(#[doc = $key_doc])+ pub $key: $key_type, )*
            $( $( #[doc = concat!("`[", stringify!($sub), "]`")] pub $sub: $sub_type, )* )?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $( $key: $default, )*
                    $( $( $sub: <$sub_type>::default(), )* )?
                }
            }
        }

        impl $crate::config::section::Section for $name {
            const DOC: &'static [&'static str] = &[$($doc),+];
            const ENTRIES: &'static [$crate::config::section::Entry] = &[
                $( $crate::config::section::Entry { name: stringify!($key), doc: &[$($key_doc),+], section: None }, )*
                $( $( $crate::config::section::Entry {
                    name: stringify!($sub),
                    doc: <$sub_type as $crate::config::section::Section>::DOC,
                    section: Some(<$sub_type as $crate::config::section::Section>::ENTRIES),
                }, )* )?
            ];
        }
    };
}

pub(super) use section;
