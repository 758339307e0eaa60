//! What the documentation names is there: files that are linked to, headings, scenarios, the files of the map.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The files of a folder whose names end so.
fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    ensure!(!paths.is_empty(), "no {ending} file in {}", folder.display());
    Ok(paths)
}

fn pages() -> Result<Vec<PathBuf>> {
    let mut pages = files(&root(), ".md")?;
    pages.extend(files(&root().join("docs"), ".md")?);
    pages.push(root().join("tests/scenarios/README.md"));
    Ok(pages)
}

/// The names of all scenarios, without their endings.
fn scenarios() -> Result<BTreeSet<String>> {
    let paths = files(&root().join("tests/scenarios"), "")?;
    Ok(paths.iter().filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect())
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The cells of a table's row, without the empty ones at its ends.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split(" | ").map(str::trim).collect())
}

/// The targets of a page's links, `](TARGET)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

/// A heading's anchor: lower case, blanks as hyphens, other signs left out.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut seen = 0;
    for page in pages()? {
        let text = read(&page)?;
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().context("a page lies in a folder")?.join(file),
            };
            ensure!(target.exists(), "{} links to {link}, which is not there", page.display());
            if !heading.is_empty() {
                let there = read(&target)?
                    .lines()
                    .any(|line| line.starts_with('#') && anchor(line.trim_start_matches('#')) == heading);
                ensure!(there, "{} links to {link}, and there is no such heading", page.display());
            }
            seen += 1;
        }
    }
    ensure!(seen > 20, "only {seen} links were found");
    Ok(())
}

#[test]
fn scenarios_of_the_specification_exist() -> Result<()> {
    let scenarios = scenarios()?;
    let mut seen = 0;
    for line in read(&root().join("SPECIFICATION.md"))?.lines() {
        // "Scenario `a`", "Scenarios `a`, `b`": up to the end of the sentence.
        for rest in line.split("Scenario").skip(1) {
            let sentence = rest.split(['.', ';']).next().unwrap_or_default();
            for name in quoted(sentence) {
                ensure!(
                    scenarios.contains(name),
                    "SPECIFICATION.md names the scenario {name}, which is not there"
                );
                seen += 1;
            }
        }
    }
    ensure!(seen > 10, "only {seen} names were found");
    Ok(())
}

#[test]
fn behaviours_have_their_scenarios() -> Result<()> {
    let scenarios = scenarios()?;
    let text = read(&root().join("docs/semantics.md"))?;
    let mut seen = 0;
    for line in text.lines() {
        let Some(row) = cells(line) else { continue };
        let Some(last) = row.last().filter(|cell| cell.starts_with('`') && cell.ends_with('`')) else {
            continue;
        };
        for name in quoted(last)
            .filter(|name| !name.contains('/') && name.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        {
            ensure!(
                scenarios.contains(name),
                "docs/semantics.md names the scenario {name}, which is not there"
            );
            seen += 1;
        }
    }
    ensure!(seen > 30, "only {seen} names were found");
    Ok(())
}

#[test]
fn limits_are_where_the_specification_says() -> Result<()> {
    let text = read(&root().join("SPECIFICATION.md"))?;
    let table = text.split("\n## ").find(|part| part.starts_with("Limits")).context("there are no limits")?;
    let mut seen = 0;
    for file in table.lines().filter_map(cells).filter_map(|row| quoted(row.last()?).next()) {
        let (krate, path) = file.split_once('/').with_context(|| format!("{file} names no crate"))?;
        let folder = root().join("crates").join(krate);
        let there = folder.join("src").join(path).exists() || folder.join(path).exists();
        ensure!(there, "SPECIFICATION.md says that a limit is in {file}, which is not there");
        seen += 1;
    }
    ensure!(seen > 10, "only {seen} files were found");
    Ok(())
}

#[test]
fn the_map_has_every_file_of_its_layers() -> Result<()> {
    let text = read(&root().join("ARCHITECTURE.md"))?;
    let source = root().join("crates/process/src");
    let mut seen = 0;
    for row in text.lines().filter_map(cells) {
        let [layer, names] = row[..] else { continue };
        let Some(layer) = quoted(layer).next().filter(|layer| source.join(layer).is_dir()) else { continue };
        let named: BTreeSet<_> = quoted(names).map(str::to_owned).collect();
        let there: BTreeSet<_> = files(&source.join(layer), ".rs")?
            .iter()
            .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
            .collect();
        for name in &there {
            ensure!(named.contains(name), "ARCHITECTURE.md does not name {name} of the layer {layer}");
        }
        for name in &named {
            ensure!(
                there.contains(name),
                "ARCHITECTURE.md names {name} in the layer {layer}, which is not there"
            );
        }
        seen += 1;
    }
    ensure!(seen >= 10, "only {seen} layers were found");
    Ok(())
}

/// All files of a folder and of those in it.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = files(folder, ".rs")?;
    for entry in std::fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_dir()) {
        found.extend(sources(&entry.path())?);
    }
    Ok(found)
}

#[test]
fn no_layer_imports_one_above_it() -> Result<()> {
    let text = read(&root().join("ARCHITECTURE.md"))?;
    let source = root().join("crates/process/src");
    let layers = text.lines().filter_map(cells).filter_map(|row| quoted(row.first()?).next());
    let layers: Vec<_> = layers.filter(|layer| !layer.contains('/') && source.join(layer).is_dir()).collect();
    ensure!(layers.len() >= 9, "only {layers:?} were found");
    for (i, layer) in layers.iter().enumerate() {
        let mut own = sources(&source.join(layer))?;
        own.push(source.join(format!("{layer}.rs")));
        for path in own {
            let text = read(&path)?;
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            let above = layers[i + 1..].iter();
            let mut uses = code.flat_map(|line| above.clone().filter(move |above| names(line, above)));
            if let Some(above) = uses.next() {
                anyhow::bail!("{} names the layer {above}, which is above it", path.display());
            }
        }
    }
    Ok(())
}

/// Whether a line of code names a layer.
fn names(line: &str, layer: &str) -> bool {
    line.match_indices(&format!("crate::{layer}")).any(|(at, name)| {
        let next = line[at + name.len()..].chars().next();
        next.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    })
}
