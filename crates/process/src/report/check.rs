//! Trying a patch on a target up to the first write: a verdict per function, and whether the whole would load.

use crate::objects::parts::Part;
use crate::report::view::{self, View};
use crate::session::again::{ATTEMPTS, Looked, PAUSE};
use crate::session::batch::{Batch, Ground};
use crate::session::callbacks::runtime;
use crate::session::libraries::references;
use crate::session::loaded_objects;
use crate::session::plan;
use crate::session::site::Finder;
use crate::stacks::contexts;
use crate::target::{Target, lock};
use crate::{Error, Pid, RemoteAddr, Result};
use serde::Serialize;
use ugraft_core::{Event, PatchId};
use ugraft_image::PatchFile;

/// What a try has found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// The patch.
    pub patch: String,
    /// The target.
    pub pid: i32,
    /// Whether a load would begin its transition.
    pub ok: bool,
    /// What stands in the way of the patch as a whole.
    pub problems: Vec<String>,
    /// What one should know although it is no problem.
    pub notes: Vec<String>,
    /// Its functions.
    pub funcs: Vec<FuncVerdict>,
}

/// What a try has found about one function.
#[derive(Clone, Debug, Serialize)]
pub struct FuncVerdict {
    /// The object; `None` is the main executable.
    pub object: Option<String>,
    /// The function.
    pub name: String,
    /// Where it lies, if it was found.
    pub addr: Option<RemoteAddr>,
    /// How it would be redirected, or why it would not.
    pub verdict: String,
    /// Parts of it that lie elsewhere, and are changed with it.
    pub cold: Vec<String>,
    /// Copies that the compiler made of it or of parts of it (`.constprop`, `.isra`, `.part`), which others call directly:
    /// they are *not* changed with it.
    pub clones: Vec<String>,
    /// Whether it can be patched, now or as soon as its object is loaded.
    pub ok: bool,
}

/// Tries `patch` on process `pid`. Nothing is stopped, traced or changed.
///
/// # Errors
/// Those of [`Target::open`]; what is wrong between patch and target is part of the report.
pub fn check(patch: &PatchFile, pid: Pid) -> Result<CheckReport> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let (report, looked) = view::look(pid, |view| try_on(patch, view))?;
        // What is wrong with a library that comes or goes just now may be that it does.
        if report.ok || attempts >= ATTEMPTS || !looked.is_outdated(&Target::open_to_read(pid)?)? {
            return Ok(report);
        }
        std::thread::sleep(PAUSE * (1 << attempts));
    }
}

/// Whether somebody traces the target who is none of ours.
fn check_not_traced(target: &Target) -> Result<()> {
    // One of ours that has just finished is gone by the second look.
    if target.tracer()?.is_none() || lock::is_attended(target.pid())? {
        return Ok(());
    }
    match target.tracer()? {
        Some((tid, tracer, comm)) => Err(Error::AlreadyTraced { tid, tracer, comm }),
        None => Ok(()),
    }
}

fn try_on(patch: &PatchFile, view: &mut View) -> Result<(CheckReport, Looked)> {
    if !view.document_only {
        // Where libraries are that came since the last command.
        view.session.look_at_libraries()?;
    }
    let target = view.session.target();
    let pid = target.pid();
    check_not_traced(target)?;
    let maps = view.maps.clone();
    let objects = loaded_objects(target, &maps)?;
    let mut document = view.session.document().clone();
    let desc = plan::describe(patch, &objects);
    let mut problems = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(e) = result {
            problems.push(e.to_string());
        }
    };
    note(plan::check_names(&desc, &objects));
    note(plan::check_build_ids(&desc, &objects));
    note(plan::check_ambiguity(patch, &objects));
    note(crate::remote::sharing::check_not_shared(target));
    let load = Event::Load { desc: desc.clone(), enable: true, ignore_order: false };
    note(ugraft_core::step(&document.state, load).map(|_| ()).map_err(Error::from));

    let mut notes: Vec<_> = contexts::switcher(&objects).iter().map(ToString::to_string).collect();
    let mut funcs = Vec::new();
    let mut finder = Finder::new(target.memory(), &maps, &objects, &document.sites);
    finder.expect(desc.funcs().count());
    for func in desc.funcs() {
        let (addr, ok, verdict) = if objects.find(func.object.as_deref()).is_err() {
            (None, true, "its object is not loaded".to_owned())
        } else if let Some(site) = document.site(&func) {
            (Some(site.entry.start()), true, "patched already; goes on top".to_owned())
        } else {
            match finder.find(&func) {
                Ok(site) => {
                    let how =
                        if site.entry.is_springboard() { "by a jump in nearby padding" } else { "by a jump" };
                    let addr = site.entry.start();
                    document.sites.push(site);
                    (Some(addr), true, format!("can be redirected {how}"))
                }
                Err(e) => (None, false, e.to_string()),
            }
        };
        let found = objects.function(func.object.as_deref(), &func.name, func.sympos).ok();
        let names = |parts: &[Part]| parts.iter().map(|part| part.name.clone()).collect::<Vec<_>>();
        let (cold, clones) = found.map_or_else(Default::default, |f| (names(&f.cold), names(&f.clones)));
        if !clones.is_empty() {
            notes.push(format!(
                "the compiler's copies of {} ({}) are not changed with it",
                func.name,
                clones.join(", ")
            ));
        }
        let (object, name) = (func.object.clone(), func.name.clone());
        funcs.push(FuncVerdict { object, name, addr, verdict, cold, clones, ok });
    }
    let mut batch = Batch::new(Ground::new(target, maps.clone()));
    if runtime::is_needed(patch) && document.runtime.is_none() {
        match runtime::plan(&objects, &mut batch) {
            Ok(runtime) => document.runtime = Some(runtime),
            Err(e) => problems.push(e.to_string()),
        }
    }
    match plan::image(PatchId(0), patch, &desc, &objects, &document, &mut batch) {
        Ok(image) => notes.extend(references::bound_later(&image, &objects)),
        Err(e) => problems.push(e.to_string()),
    }
    let ok = problems.is_empty() && funcs.iter().all(|f| f.ok);
    if !ok {
        // What has ended meanwhile lacks everything.
        target.check_same()?;
    }
    let report = CheckReport { patch: desc.name, pid: pid.0, ok, problems, notes, funcs };
    Ok((report, Looked::at(&maps, &objects)))
}
