//! Compiled objects with fields changed at random: whatever comes out is refused or linked, and what is linked lies where it
//! should. Nothing panics, and the linker's own check finds nothing.

mod support;

use proptest::prelude::*;
use std::sync::LazyLock;
use support::object;
use ugraft_image::{Error, Import, KlpSymbol, PatchFile, RemoteAddr, Resolution, Resolve, link};

static OBJECTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let features = include_str!("run/features.c");
    let everything = include_str!("header/everything.c");
    let small = include_str!("refused/good.c");
    vec![
        object("gcc", small, &["-O2", "-fPIC"]),
        object("gcc", everything, &["-O2", "-fno-pic"]),
        object("clang", small, &["-O1", "-fPIC", "-mcmodel=large"]),
        object("gcc", features, &["-O2", "-fpie", "-ffunction-sections"]),
        object("clang", features, &["-O0", "-fPIC"]),
    ]
});

/// Answers by the length of the name: near, far, thread-local, missing, in a library that can go.
struct Fake;

impl Resolve for Fake {
    fn symbol(&mut self, import: &Import) -> Resolution {
        match import.name.len() % 8 {
            0 => Resolution::NotFound,
            1 => Resolution::Address(RemoteAddr(0x7fff_0000_1234)),
            2 => Resolution::Movable(RemoteAddr(0)),
            3 => Resolution::Movable(RemoteAddr(0x7fff_0000_4321)),
            _ if import.usage.tls => Resolution::TpOffset(-64),
            _ => Resolution::Address(RemoteAddr(0x40_0000)),
        }
    }
    fn klp_symbol(&mut self, _: &KlpSymbol, import: &Import) -> Resolution {
        self.symbol(import)
    }
}

fn parse_and_link(bytes: &[u8], base: u64) -> Result<(), TestCaseError> {
    let Ok(patch) = PatchFile::parse(bytes, "mutant") else { return Ok(()) };
    match link(&patch, RemoteAddr(base), &mut Fake) {
        Ok(image) => {
            prop_assert_eq!(image.size, patch.layout().size);
            for s in &image.segments {
                prop_assert!(s.addr >= image.base);
                prop_assert!(s.bytes.len() as u64 <= s.mem_size);
                prop_assert!(s.addr.0 + s.mem_size <= image.base.0 + image.size);
            }
            prop_assert_eq!(image.objects.len(), patch.metadata().objects.len());
        }
        Err(error) => prop_assert!(!matches!(error, Error::Check { .. }), "{}", error),
    }
    Ok(())
}

/// Numbers at which arithmetic goes wrong.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(1 << 63),
        Just(1 << 31),
        Just(u64::from(u32::MAX)),
        Just(0xfff1),
        any::<u8>().prop_map(u64::from),
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_fields(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![1usize, 2, 4, 8]), number()), 1..6),
        base in prop_oneof![Just(0x1000_0000u64), Just(0x5555_5555_5000)],
    ) {
        let mut bytes = OBJECTS[which.index(OBJECTS.len())].clone();
        for (at, width, value) in changes {
            // Fields are aligned to their width.
            let at = at.index(bytes.len() / width) * width;
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        parse_and_link(&bytes, base)?;
    }

    #[test]
    fn changed_tables(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut bytes = OBJECTS[which.index(OBJECTS.len())].clone();
        // The second half of an object holds its symbols, relocations and section headers.
        let half = bytes.len() / 2;
        for (at, value) in changes {
            let at = half + at.index(bytes.len() - half);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        parse_and_link(&bytes, 0x1000_0000)?;
    }

    #[test]
    fn noise(mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        // Past the header checks.
        let header = &OBJECTS[0][..64.min(bytes.len())];
        bytes[..header.len()].copy_from_slice(header);
        parse_and_link(&bytes, 0x1000_0000)?;
    }
}
