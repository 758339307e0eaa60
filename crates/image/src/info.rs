//! The key=value strings of the metadata section, as a kernel module's `.modinfo`.

use crate::error::{Error, Result};
use crate::klp_symbol::EXE;
use crate::limits;

/// The version of the structures in <ugraft/livepatch.h> that this crate reads (`KLP_ABI` there).
pub const ABI: &str = "1";

/// What the strings say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Info {
    pub name: Option<String>,
    pub version: Option<String>,
    pub description: Option<String>,
    pub license: Option<String>,
    pub depends: Vec<String>,
    /// Object (None for the main executable) and build-id.
    pub build_ids: Vec<(Option<String>, Vec<u8>)>,
}

fn wrong(what: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Info { what: what.into(), reason: reason.into() }
}

/// Whether `name` can be a patch's name: it appears in commands, tables and the log, so no blanks, slashes or
/// characters that a terminal acts on. `what` says whose it is and `way` what to do if not.
pub fn check_patch_name(what: &str, name: &str, way: &str) -> Result<()> {
    if name.is_empty() {
        return Err(wrong(what, format!("is empty: {way}")));
    }
    let max = limits::MAX_PATCH_NAME;
    if name.len() > max {
        return Err(wrong(
            what,
            format!("{name:?} has {} bytes, at most {max} are allowed: {way}", name.len()),
        ));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
    if !name.chars().all(good) || name.starts_with(['-', '.']) {
        return Err(wrong(
            what,
            format!("{name:?} is no name of a patch (letters, digits, _ - + . and not - or . first): {way}"),
        ));
    }
    Ok(())
}

/// Whether `name` can be an object's: a file name, or how the linker knows a library.
pub fn check_object_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty: NULL names the main executable".into());
    }
    if name.len() > limits::MAX_OBJECT_NAME {
        return Err(format!("has {} bytes, at most {} are allowed", name.len(), limits::MAX_OBJECT_NAME));
    }
    if name.contains('/') {
        return Err(format!(
            "{name:?} holds a slash: give the SONAME or the file name without its directory"
        ));
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("{name:?} holds a blank or control character"));
    }
    if matches!(name, EXE | "vmlinux") {
        return Err(format!("{name:?} is no library: the main executable is named by NULL"));
    }
    Ok(())
}

fn check_text(key: &str, value: &str) -> Result<()> {
    if value.len() > limits::MAX_INFO_VALUE {
        return Err(wrong(
            key,
            format!("has {} bytes, at most {} are allowed", value.len(), limits::MAX_INFO_VALUE),
        ));
    }
    if value.chars().any(char::is_control) {
        return Err(wrong(key, "holds a control character, which a terminal would act on: write plain text"));
    }
    Ok(())
}

/// Reads the strings of the metadata sections.
pub fn parse<'a>(sections: impl Iterator<Item = &'a [u8]>) -> Result<Info> {
    let mut info = Info::default();
    let mut count = 0;
    let mut abi = None;
    for section in sections {
        if section.last().is_some_and(|b| *b != 0) {
            return Err(wrong("the last string", "does not end: use the macros of <ugraft/livepatch.h>"));
        }
        for string in section.split(|b| *b == 0).filter(|s| !s.is_empty()) {
            count += 1;
            if count > limits::MAX_INFO_STRINGS {
                return Err(Error::TooMany {
                    what: "metadata strings",
                    count: count as u64,
                    limit: limits::MAX_INFO_STRINGS as u64,
                });
            }
            let string = core::str::from_utf8(string)
                .map_err(|_| wrong(format!("string {count}"), "is not UTF-8: save the source as UTF-8"))?;
            let (key, value) = string.split_once('=').ok_or_else(|| {
                let shown: String = string.chars().take(40).collect();
                wrong(format!("{shown:?}"), "is not key=value: use the macros of <ugraft/livepatch.h>")
            })?;
            add(&mut info, &mut abi, key, value)?;
        }
    }
    match abi {
        Some(abi) if abi != ABI => Err(Error::Abi { abi, known: ABI }),
        None => Err(wrong("klp_abi", "is missing: mark the patch with KLP_PATCH of <ugraft/livepatch.h>")),
        Some(_) => {
            // Compilers reorder the strings; what does not depend on them is the alphabet.
            info.depends.sort_unstable();
            Ok(info)
        }
    }
}

fn add(info: &mut Info, abi: &mut Option<String>, key: &str, value: &str) -> Result<()> {
    let once = |slot: &mut Option<String>| -> Result<()> {
        check_text(key, value)?;
        match slot {
            Some(old) if old != value => {
                Err(wrong(key, format!("is given twice, as {old:?} and {value:?}: keep one")))
            }
            _ => {
                *slot = Some(value.to_string());
                Ok(())
            }
        }
    };
    match key {
        "klp_abi" => once(abi),
        "name" => {
            check_patch_name("name", value, "write KLP_NAME(\"...\")")?;
            once(&mut info.name)
        }
        "version" => once(&mut info.version),
        "description" => once(&mut info.description),
        "license" => once(&mut info.license),
        "depends" => {
            for name in value.split(',') {
                check_patch_name("depends", name, "write KLP_DEPENDS(\"...\") for each")?;
                if !info.depends.iter().any(|d| d == name) {
                    info.depends.push(name.to_string());
                }
            }
            if info.depends.len() > limits::MAX_DEPENDS {
                return Err(Error::TooMany {
                    what: "dependencies",
                    count: info.depends.len() as u64,
                    limit: limits::MAX_DEPENDS as u64,
                });
            }
            Ok(())
        }
        "build_id" => {
            let (object, id) = build_id(value)?;
            match info.build_ids.iter().find(|(o, _)| *o == object) {
                Some((_, old)) if *old != id => Err(wrong(
                    "build_id",
                    format!("two different ones for {}: keep one", object.as_deref().unwrap_or(EXE)),
                )),
                Some(_) => Ok(()),
                None => {
                    info.build_ids.push((object, id));
                    Ok(())
                }
            }
        }
        // Of the kernel's modules, or of versions to come: a key that is not known changes nothing.
        _ => check_text(key, value),
    }
}

fn build_id(value: &str) -> Result<(Option<String>, Vec<u8>)> {
    let form = || {
        wrong(
            "build_id",
            format!("{value:?} is not \"OBJECT:HEX\": use KLP_OBJECT_BUILD_ID(\"libz.so.1\", \"8a1f...\")"),
        )
    };
    check_text("build_id", value)?;
    let (object, hex) = value.rsplit_once(':').ok_or_else(form)?;
    let object = if object == EXE {
        None
    } else {
        check_object_name(object).map_err(|reason| wrong("build_id: the object's name", reason))?;
        Some(object.to_string())
    };
    let digits: Vec<u8> =
        hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>().ok_or_else(form)?;
    let id: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0)).collect();
    if digits.len() % 2 == 1 || !limits::BUILD_ID_SIZES.contains(&id.len()) {
        return Err(wrong(
            "build_id",
            format!(
                "{hex:?} is not whole: it takes {} to {} bytes, two digits each (readelf -n shows it)",
                limits::BUILD_ID_SIZES.start(),
                limits::BUILD_ID_SIZES.end()
            ),
        ));
    }
    Ok((object, id))
}
