//! The header: clean for every language version of both compilers, and laid out as the reader expects.

mod support;

use support::*;
use ugraft_image::{Func, PatchFile, PatchState};

const EVERYTHING: &str = include_str!("header/everything.c");

#[test]
fn every_language_version_and_the_same_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = None;
    let versions = [
        (["gcc", "clang"], "c", &["gnu89", "c89", "gnu99", "gnu11", "c11", "gnu17", "c17", "gnu2x"][..]),
        (["g++", "clang++"], "cc", &["c++14", "c++17", "gnu++20", "gnu++2b"]),
    ];
    for (compilers, ext, versions) in versions {
        for cc in compilers {
            for version in versions {
                for options in [&["-O2", "-fPIC"][..], &["-O0"], &["-O2", "-fno-pic", "-fdata-sections"]] {
                    let std = format!("-std={version}");
                    let options = [options, &["-Wall", "-Wextra", "-Werror", &std]].concat();
                    let object = compile(dir.path(), cc, "everything", ext, EVERYTHING, &options);
                    let patch = PatchFile::parse(&std::fs::read(object).unwrap(), "everything")
                        .unwrap_or_else(|e| panic!("{cc} {options:?}: {e}"));
                    let metadata = patch.metadata().clone();
                    let wanted = first.get_or_insert_with(|| metadata.clone());
                    assert_eq!(&metadata, wanted, "{cc} {options:?}");
                }
            }
        }
    }
    let m = first.unwrap();
    assert_eq!((m.name.as_str(), m.version.as_deref()), ("every-thing_1.0", Some("1.2.3")));
    assert_eq!(m.description.as_deref(), Some("All that the header offers, with \u{e9}"));
    assert_eq!(m.license.as_deref(), Some("GPL"));
    assert_eq!(m.depends, ["base", "other"]);
    assert!(m.replace);
    assert_eq!(m.states, [PatchState { id: 7, version: 2 }, PatchState { id: u64::MAX, version: 0 }]);
    let names: Vec<_> = m.objects.iter().map(|o| o.name.as_deref()).collect();
    assert_eq!(names, [None, Some("libz.so.1"), Some("empty.so")]);
    assert_eq!(m.objects[0].build_id, Some(vec![0x8a, 0x1f, 0x00, 0xff]));
    assert_eq!(m.objects[1].build_id, Some(vec![1, 2, 3, 4, 5, 6, 7, 8]));
    let func = |old_name: &str, old_sympos, new_func: &str| Func {
        old_name: old_name.into(),
        old_sympos,
        new_func: new_func.into(),
    };
    assert_eq!(
        m.objects[0].funcs,
        [func("ns::f(int, char const*)", 0, "new_f"), func("g.constprop.0", 3, "new_g")]
    );
    assert_eq!(m.objects[1].funcs, [func("ns::f(int, char const*)", 1, "new_f")]);
    assert!(m.objects[2].funcs.is_empty());
    assert!(m.objects[0].callbacks.is_empty() && m.objects[2].callbacks.is_empty());
    let callbacks = &m.objects[1].callbacks;
    assert_eq!(callbacks.pre_patch.as_deref(), Some("pre"));
    assert_eq!(callbacks.post_patch.as_deref(), Some("post"));
    assert_eq!(callbacks.pre_unpatch, None);
    assert_eq!(callbacks.post_unpatch.as_deref(), Some("post_un"));
}

/// The name of a file that states none is its stem.
#[test]
fn name_of_the_file() {
    let source = EVERYTHING.replace("KLP_NAME", "KLP_VERSION").replace("KLP_VERSION(\"1.2.3\");", "");
    let patch = PatchFile::parse(&object("gcc", &source, &["-O2"]), "fix-42").unwrap();
    assert_eq!(patch.metadata().name, "fix-42");
    assert_eq!(patch.metadata().version.as_deref(), Some("every-thing_1.0"));
}

/// A patch that replaces all others by nothing is one.
#[test]
fn replace_by_nothing() {
    let source = "#include <ugraft/livepatch.h>\nstatic struct klp_object objs[] = { { } };\n\
        static struct klp_patch patch = { .objs = objs, .replace = true };\nKLP_PATCH(patch);\n";
    let patch = PatchFile::parse(&object("gcc", source, &["-O2"]), "none").unwrap();
    assert!(patch.metadata().replace && patch.metadata().objects.is_empty());
}
