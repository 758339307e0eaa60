//! The requests: load, enable, disable, unload, wait, reverse, force.
//!
//! Each takes up first what an earlier run of the tool left: a transition that had not begun is cancelled, one that had
//! is carried on, and only a target that is in no transition is asked for something new. Each is all or nothing: what
//! fails leaves the target as it was.

use crate::answers::Report;
use crate::code::entry::Installed;
use crate::objects::{Objects, Role};
use crate::remote::sharing;
use crate::session::again::{Attempts, Looked};
use crate::session::batch::Batch;
use crate::session::callbacks::call_area::CALL_AREA_LEN;
use crate::session::callbacks::params;
use crate::session::callbacks::runtime;
use crate::session::libraries::{is_about_to_come, references};
use crate::session::plan;
use crate::session::stop::Hindrance;
use crate::session::switch::Standing;
use crate::session::{Session, loaded_objects, objects_among};
use crate::stacks::contexts;
use crate::state::document::Document;
use crate::state::pieces::CallArea;
use crate::target::Unfit;
use crate::threads::priority::Prompt;
use crate::{Error, Pid, Result, resolvers};
use std::rc::Rc;
use std::time::{Duration, Instant};
use ugraft_core::{AlreadySo, Direction, Due, Event, Life, Refusal, Transition};
use ugraft_image::PatchFile;

/// How a request is to be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How long the transition may take before it is reversed, or left as it is.
    pub timeout: Duration,
    /// Whether to go on although the order of dependent patches forbids it.
    pub ignore_order: bool,
    /// Whether a transition that is not complete in time is left pending, for a later run to carry on.
    pub keep: bool,
    /// Whether suspended stacks are looked for in all writable memory, too.
    pub scan_memory: bool,
}

/// Pause between two attempts to load a patch into a program that is being started.
const LOADER_PAUSE: Duration = Duration::from_millis(2);
/// Pause between two attempts to take the lock that another tool has.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

impl Session {
    /// Loads a patch, and enables it if `enable`.
    ///
    /// # Errors
    /// The reason why not; the target is as before.
    pub fn load(&mut self, patch: &PatchFile, enable: bool, options: Options) -> Result<Report> {
        self.request(|session| {
            let name = patch.metadata().name.clone();
            let moving = session.in_transition().is_ok_and(|moving| moving == name);
            let taken_up = session.take_up(options);
            // A load that had not begun is gone by now, and may be given again.
            if moving && session.document.state.patch_named(&name).is_some() {
                session.notes.push(format!("a patch '{name}' is loaded already; this file is not loaded"));
            }
            taken_up?;
            session.load_in_time(patch, enable, options)
        })
    }

    /// Loads a patch when what the target needs is loaded: a program that was started a moment ago is given time for it.
    fn load_in_time(&mut self, patch: &PatchFile, enable: bool, options: Options) -> Result<Report> {
        let name = &patch.metadata().name;
        let deadline = Instant::now() + options.timeout;
        loop {
            let done = self.attempt(|session| session.load_fresh(patch, enable, options), name, options);
            match done {
                Err(e) if Instant::now() + LOADER_PAUSE < deadline && self.may_still_load(&e) => {
                    tracing::debug!("the target is still being loaded: {e}");
                    self.maps = None;
                    std::thread::sleep(LOADER_PAUSE);
                }
                done => return done,
            }
        }
    }

    /// Whether a failure may be that of a program whose loader has not come to its end yet: what was missing may be about to come.
    fn may_still_load(&self, e: &Error) -> bool {
        match e {
            Error::Unfit { why: Unfit::Starting, .. } => true,
            Error::Link(_) | Error::Symbol(_) | Error::Entry { .. } => {
                self.looked.as_ref().is_some_and(|looked| !looked.whole)
            }
            _ => false,
        }
    }

    /// Enables a loaded patch. One that is just being disabled is turned round.
    ///
    /// # Errors
    /// As [`Session::load`]; [`Error::InTransition`] where it was turned round and does not complete in the time given.
    pub fn enable(&mut self, name: &str, options: Options) -> Result<Report> {
        let event = Event::Enable { patch: name.to_owned(), ignore_order: options.ignore_order };
        self.request(|session| session.turn_or_change(Direction::Patching, event, name, options))
    }

    /// Disables an enabled patch. One that is just being enabled is turned round.
    ///
    /// # Errors
    /// As [`Session::enable`].
    pub fn disable(&mut self, name: &str, options: Options) -> Result<Report> {
        let event = Event::Disable { patch: name.to_owned(), ignore_order: options.ignore_order };
        self.request(|session| session.turn_or_change(Direction::Unpatching, event, name, options))
    }

    /// Turns the transition of the patch round that leads away from what is wanted, or has `event` begin one that leads there.
    fn turn_or_change(
        &mut self,
        wanted: Direction,
        event: Event,
        name: &str,
        options: Options,
    ) -> Result<Report> {
        if let Some(report) = self.turn_towards(wanted, name, options)? {
            return Ok(report);
        }
        self.take_up(options)?;
        self.require_patched()?;
        self.attempt(|session| session.change(event.clone(), name, options), name, options)
    }

    /// Removes a disabled or replaced patch.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub fn unload(&mut self, name: &str, options: Options) -> Result<Report> {
        self.request(|session| {
            session.take_up(options)?;
            session.require_patched()?;
            session.attempt(|session| session.remove(name, options), name, options)
        })
    }

    fn remove(&mut self, name: &str, options: Options) -> Result<Batch> {
        let patch = self.document.state.patch_named(name).map(|patch| patch.id());
        self.step(Event::Unload { patch: name.to_owned() })?;
        patch.map_or(Ok(()), |patch| self.check_not_led_to(patch))?;
        if matches!(self.document.state.due(), Due::Callback(_)) {
            self.check_safe_point(Instant::now() + options.timeout)?;
        }
        self.forget_what_is_gone();
        self.was_entered = true;
        let maps = self.recent_maps()?;
        Ok(self.batch(maps))
    }

    /// Does what a request asks for, as promptly as may be. What goes wrong with a target that has ended meanwhile went wrong for
    /// that.
    fn request(&mut self, work: impl FnOnce(&mut Self) -> Result<Report>) -> Result<Report> {
        let _prompt = Prompt::begin();
        work(self).map_err(|e| self.target.cause_of(e))
    }

    /// Takes the lock on `pid` as [`Session::open`], and waits for a tool that has it until `deadline`.
    ///
    /// # Errors
    /// Those of [`Session::open`].
    pub fn open_by(pid: Pid, deadline: Instant) -> Result<Self> {
        loop {
            match Self::open(pid) {
                Err(Error::Busy { .. }) if Instant::now() + LOCK_PAUSE < deadline => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                result => return result,
            }
        }
    }

    /// Carries the transition of the patch called `name` on to its end. A patch that is in none needs no waiting for.
    ///
    /// # Errors
    /// [`Error::InTransition`] where it does not complete in the time given; it goes on being in transition.
    pub fn wait(&mut self, name: &str, options: Options) -> Result<Report> {
        self.request(|session| {
            session.require_patched()?;
            if session.document.state.patch_named(name).is_none() {
                return Err(Refusal::NoSuchPatch(name.to_owned()).into());
            }
            if session.in_transition().is_ok_and(|moving| moving == name) {
                session.scan_memory |= options.scan_memory;
                let deadline = Instant::now() + options.timeout;
                session.carry_on(name, deadline)?;
                session.settle_libraries(deadline)?;
                let swept = session.sweep(deadline);
                session.note_unswept(swept)?;
            }
            session.trouble.take().map_or_else(|| Ok(session.report(name, None)), Err)
        })
    }

    /// Turns the running transition round.
    ///
    /// # Errors
    /// [`Error::InTransition`] where it does not complete in the time given.
    pub fn reverse(&mut self, options: Options) -> Result<Report> {
        self.request(|session| {
            session.require_patched()?;
            let name = session.in_transition()?;
            session.resume(Instant::now() + options.timeout)?;
            session.complete_reversed(&name, options)
        })
    }

    /// Where the patch called `name` is in its transition in the other direction, which has begun, turns that round: asking for
    /// the opposite is a wish for that. `None` where there is nothing to be turned round.
    fn turn_towards(&mut self, wanted: Direction, name: &str, options: Options) -> Result<Option<Report>> {
        if self.moves_away_from(wanted, name) {
            self.resume(Instant::now() + options.timeout)?;
        }
        // Taken up, it may turn out never to have begun, to be over, or to be turned round already.
        if !self.moves_away_from(wanted, name) {
            return Ok(None);
        }
        let (was, now) = match wanted {
            Direction::Patching => ("disabled", "enabled"),
            Direction::Unpatching => ("enabled", "disabled"),
        };
        self.notes.push(format!(
            "patch '{name}' was being {was}; its transition is turned round, to have it {now}"
        ));
        self.complete_reversed(name, options).map(Some)
    }

    fn moves_away_from(&self, wanted: Direction, name: &str) -> bool {
        let direction = self.document.state.transition().map(Transition::direction);
        direction == Some(wanted.opposite()) && self.in_transition().is_ok_and(|moving| moving == name)
    }

    /// Turns the transition of the patch called `name` round, if it still runs, and carries it to its end.
    fn complete_reversed(&mut self, name: &str, options: Options) -> Result<Report> {
        let deadline = Instant::now() + options.timeout;
        if self.document.state.transition().is_some() {
            self.turn_round(deadline)?;
            if let Standing::Pending(hindrances) = self.converge(deadline)? {
                return Err(self.still_in_transition(name, hindrances));
            }
        }
        self.settle_libraries(Instant::now() + options.timeout)?;
        let swept = self.sweep(Instant::now() + options.timeout);
        self.note_unswept(swept)?;
        self.trouble.take().map_or_else(|| Ok(self.report(name, None)), Err)
    }

    /// What has been remarked so far: a request that fails may have done something else before.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Completes the running transition without proof that it is safe.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is none.
    pub fn force(&mut self, options: Options) -> Result<Report> {
        self.request(|session| session.force_now(options))
    }

    fn force_now(&mut self, options: Options) -> Result<Report> {
        self.require_patched()?;
        let name = self.in_transition()?;
        let forced_before = self.forced();
        let deadline = Instant::now() + options.timeout;
        self.resume(deadline)?;
        if self.document.state.transition().is_some() {
            self.force_through(deadline)?;
        }
        self.was_entered = true;
        self.settle_libraries(Instant::now() + options.timeout)?;
        // Who was forced may stay in old code for long: no waiting for that.
        let swept = self.sweep(Instant::now());
        self.note_unswept(swept)?;
        if let Some(trouble) = self.trouble.take() {
            return Err(trouble);
        }
        let mut report = self.report(&name, None);
        report.forced = self.forced();
        report.forced.retain(|name| !forced_before.contains(name));
        Ok(report)
    }

    /// The patches whose memory stays for ever.
    fn forced(&self) -> Vec<String> {
        let forced = self.document.state.patches().iter().filter(|patch| patch.is_forced());
        forced.map(|patch| patch.name().to_owned()).collect()
    }

    /// The name of the patch in transition.
    fn in_transition(&self) -> Result<String> {
        let transition = self.document.state.transition().ok_or(Refusal::NoTransition)?;
        let patch = self.document.state.patch(transition.patch());
        Ok(patch.map(|patch| patch.name().to_owned()).unwrap_or_default())
    }

    /// Finishes what an earlier run of the tool left: a transition, and memory that nobody needs.
    fn take_up(&mut self, options: Options) -> Result<()> {
        self.take_up_transition(options)?;
        if let Some(trouble) = self.trouble.take() {
            self.notes.push(trouble.to_string());
        }
        if self.has_left_overs()? {
            // Whoever made them is not there to tell whether a thread was led into them.
            self.was_entered = true;
            self.sweep(Instant::now() + options.timeout)?;
        }
        self.was_entered = false;
        let taken_up = self.take_up_libraries(Instant::now() + options.timeout);
        if taken_up.is_err() {
            // Whoever waits in the hook waits for nothing now.
            self.release_loader()?;
        }
        taken_up
    }

    fn take_up_transition(&mut self, options: Options) -> Result<()> {
        if self.document.state.transition().is_none() {
            return self.resume(Instant::now() + options.timeout);
        }
        let name = self.in_transition()?;
        self.notes.push(format!("an earlier run left patch '{name}' in transition; it was taken up first"));
        self.carry_on(&name, Instant::now() + options.timeout)
    }

    /// Carries the running transition, of the patch `name`, on to its end.
    fn carry_on(&mut self, name: &str, deadline: Instant) -> Result<()> {
        self.resume(deadline)?;
        if self.document.state.transition().is_some()
            && let Standing::Pending(hindrances) = self.converge(deadline)?
        {
            return Err(self.still_in_transition(name, hindrances));
        }
        Ok(())
    }

    /// Has `begin` put a request into the document and a batch, and carries it out.
    fn attempt(
        &mut self,
        begin: impl FnMut(&mut Self) -> Result<Batch>,
        name: &str,
        options: Options,
    ) -> Result<Report> {
        let result = self.begin_until_it_counts(begin, name, options);
        let released = self.release_loader();
        match result {
            Err(Error::Refused(Refusal::AlreadySo(already))) => {
                return released.map(|()| self.report(name, Some(already)));
            }
            // There is nothing that could be settled or given back.
            Err(e) if !self.committed => return Err(e),
            _ => {}
        }
        let settled = self.settle_libraries(Instant::now() + options.timeout);
        // Whatever came of it: what is not needed goes.
        let swept = self.sweep(Instant::now() + options.timeout);
        result?;
        released?;
        if let Err(e) = settled {
            // What was asked for is done; the next command does this first.
            self.notes.push(format!("libraries that come are not seen to before the next command: {e}"));
        }
        self.note_unswept(swept)?;
        Ok(self.report(name, None))
    }

    /// Begins the request, anew where it failed for what the target was at that moment only, and carries it out. One that fails
    /// leaves the document as it was.
    fn begin_until_it_counts(
        &mut self,
        mut begin: impl FnMut(&mut Self) -> Result<Batch>,
        name: &str,
        options: Options,
    ) -> Result<()> {
        let mut before = self.document.clone();
        let replaced = before.state.patches().iter().filter(|p| p.life() == Life::Replaced);
        self.replaced_before = replaced.map(|p| p.name().to_owned()).collect();
        let noted = self.notes.len();
        let until = Instant::now() + options.timeout;
        let mut attempts = Attempts::until(until);
        loop {
            self.committed = false;
            let result = begin(self).and_then(|batch| self.carry_out(batch, name, &before, options));
            let Err(e) = result else { return Ok(()) };
            if self.committed {
                return Err(e);
            }
            // Nothing of it was committed, so what was there before is still all there is.
            self.document = before;
            self.drop_messages();
            self.try_again(e, &mut attempts).map_err(|e| self.refused(e))?;
            self.notes.truncate(noted);
            self.maps = None;
            self.take_up_libraries(until)?;
            before = self.document.clone();
        }
    }

    /// Logs what the kernel says of a refusal.
    fn refused(&self, e: Error) -> Error {
        if let Error::Refused(refusal) = &e
            && let Err(also) = self.log_refusal(refusal)
        {
            tracing::warn!("the refusal could not be logged: {also}");
        }
        e
    }

    /// What was asked for is done even if memory could not be given back.
    fn note_unswept(&mut self, swept: Result<()>) -> Result<()> {
        match swept {
            Err(gone @ Error::TargetGone(_)) => Err(gone),
            Err(e) => {
                self.notes.push(format!("memory that is not needed is given back by the next command: {e}"));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn carry_out(&mut self, mut batch: Batch, name: &str, before: &Document, options: Options) -> Result<()> {
        let deadline = Instant::now() + options.timeout;
        if matches!(self.document.state.due(), Due::Callback(_)) {
            // The image first, since its callbacks run in it.
            self.install(batch)?;
            if self.document.state.transition().is_none() {
                // A patch's init, with which its enabling begins, or its exit.
                self.run_one_callback(deadline)?;
                self.close_if_over();
                self.commit()?;
            }
            batch = self.batch(self.target.maps()?);
        }
        if self.document.state.transition().is_none() {
            self.install(batch)?;
            return self.trouble.take().map_or(Ok(()), Err);
        }
        self.scan_memory = options.scan_memory;
        let standing = self.transition(batch, Instant::now() + options.timeout)?;
        let hindrances = match standing {
            Standing::Complete => return self.trouble.take().map_or(Ok(()), Err),
            Standing::NotBegun(hindrances) => {
                let blocked = self.describe(hindrances);
                return Err(Error::TimedOut { patch: name.to_owned(), blocked });
            }
            Standing::Pending(hindrances) if options.keep => {
                return Err(self.still_in_transition(name, hindrances));
            }
            Standing::Pending(hindrances) => hindrances,
        };
        let blocked = self.describe(hindrances);
        let deadline = Instant::now() + options.timeout;
        self.turn_round(deadline)?;
        match self.converge(deadline)? {
            Standing::Complete | Standing::NotBegun(_) => {
                if before.state.patch_named(name).is_none() {
                    // A load that did not come through leaves no patch behind.
                    self.step(Event::Unload { patch: name.to_owned() })?;
                    if matches!(self.document.state.due(), Due::Callback(_)) {
                        self.commit()?;
                        self.run_callbacks(deadline)?;
                    }
                    self.forget_what_is_gone();
                    self.commit()?;
                }
                Err(Error::TimedOut { patch: name.to_owned(), blocked })
            }
            Standing::Pending(hindrances) => Err(self.still_in_transition(name, hindrances)),
        }
    }

    fn load_fresh(&mut self, patch: &PatchFile, enable: bool, options: Options) -> Result<Batch> {
        let target = Rc::clone(&self.target);
        sharing::check_not_shared(&target)?;
        let maps = self.recent_maps()?;
        let objects = loaded_objects(&target, &maps)?;
        self.looked = Some(Looked::at(&maps, &objects));
        self.check_undisturbed()?;
        let desc = plan::describe(patch, &objects);
        plan::check_names(&desc, &objects)?;
        plan::check_build_ids(&desc, &objects)?;
        plan::check_ambiguity(patch, &objects)?;
        self.note_objects(&objects)?;
        if desc.init || enable && plan::calls_back_at_once(&desc, &objects) {
            self.check_safe_point(Instant::now() + options.timeout)?;
        }
        if enable {
            self.note_contexts(&objects, options);
            self.resolvers = resolvers(&objects)?;
        }
        self.step(Event::Load { desc: desc.clone(), enable, ignore_order: options.ignore_order })?;
        let known = self.document.state.patch_named(&desc.name);
        let id = known.map(|p| p.id()).ok_or_else(|| Refusal::NoSuchPatch(desc.name.clone()))?;
        let mut batch = self.batch(maps.clone());
        let loaded = desc.funcs().filter(|f| self.document.state.is_loaded(f.object.as_deref()));
        let sites = plan::new_sites(&target, &maps, &objects, &self.document, loaded)?;
        self.document.sites.extend(sites);
        if runtime::is_needed(patch) && self.document.runtime.is_none() {
            self.document.runtime = Some(self.plan_runtime(&objects, &mut batch)?);
        }
        self.plan_libraries(&objects, &maps, &mut batch)?;
        self.know_libraries(&objects)?;
        let mut image = plan::image(id, patch, &desc, &objects, &self.document, &mut batch)?;
        params::set_at_load(&self.settings, patch, &mut image, &mut batch)?;
        self.document.images.push(image);
        self.plan_unwinder(&objects, &maps, patch, &mut batch)?;
        if plan::has_callbacks(&desc) && self.document.call_area.is_none() {
            let base = batch.ground.take(CALL_AREA_LEN, &[])?.start;
            let (area, request, code) = CallArea::plan(base);
            batch.requests.push(request);
            batch.writes.push(code);
            self.document.call_area = Some(area);
        }
        if !enable {
            // The sites were needed for the image's place only; an enable finds them anew.
            self.forget_what_is_gone();
        }
        Ok(batch)
    }

    /// An enable or disable of a loaded patch.
    fn change(&mut self, event: Event, name: &str, options: Options) -> Result<Batch> {
        let target = Rc::clone(&self.target);
        sharing::check_not_shared(&target)?;
        let maps = self.recent_maps()?;
        let objects = objects_among(&target, &maps)?;
        self.looked = Some(Looked::at(&maps, &objects));
        self.check_undisturbed()?;
        if let Event::Enable { .. } = event
            && let Some(patch) = self.document.state.patch_named(name)
        {
            plan::check_build_ids(patch.desc(), &objects)?;
        }
        self.note_objects(&objects)?;
        self.note_contexts(&objects, options);
        self.resolvers = resolvers(&objects)?;
        let enabling = matches!(event, Event::Enable { .. });
        self.step(event)?;
        if matches!(self.document.state.due(), Due::Callback(_)) {
            self.check_safe_point(Instant::now() + options.timeout)?;
        }
        let mut batch = self.batch(maps.clone());
        // While a callback is due the state does not know yet what will change.
        let state = &self.document.state;
        let patch = state.patch_named(name);
        let all =
            patch.into_iter().flat_map(|patch| patch.desc().funcs().chain(patch.nops().iter().cloned()));
        let changing: Vec<_> = all.filter(|func| state.is_loaded(func.object.as_deref())).collect();
        let changing = changing.into_iter();
        let sites = plan::new_sites(&target, &maps, &objects, &self.document, changing)?;
        self.document.sites.extend(sites);
        let mut images = std::mem::take(&mut self.document.images);
        for image in &mut images {
            if self.document.state.patch(image.patch).is_some_and(|p| p.name() == name) {
                plan::trampolines(image, &self.document, name, &mut batch)?;
                if enabling && let Some(patch) = self.document.state.patch(image.patch) {
                    references::write_all(image, patch.desc(), &objects, &mut batch)?;
                }
            }
        }
        self.document.images = images;
        self.plan_libraries(&objects, &maps, &mut batch)?;
        self.know_libraries(&objects)?;
        Ok(batch)
    }

    /// Refuses to go on where the entry of a patched function is not what was written there.
    fn check_undisturbed(&mut self) -> Result<()> {
        for site in &self.document.sites.clone() {
            let implementation = self.document.state.steady(&site.func);
            let wanted = match self.document.landing(&site.func, implementation)? {
                Some(landing) => Installed::Redirect(landing),
                None => Installed::Original,
            };
            if self.installed(site)?.is_some_and(|installed| installed != wanted) {
                if !matches!(self.in_loader(), Ok(None)) || self.is_gone(&site.func) {
                    // Its library is going, or has just gone.
                    continue;
                }
                let function = site.func.to_string();
                return Err(Error::Disturbed { function, at: site.entry.place() });
            }
        }
        Ok(())
    }

    /// Tells the semantics which libraries are loaded now.
    fn note_objects(&mut self, objects: &Objects<'_>) -> Result<()> {
        self.forget_libraries(objects)?;
        let seen = self.seen_libraries()?;
        for object in objects.iter().filter(|o| matches!(o.role(), Role::Library | Role::Loader)) {
            let name = object.name();
            let patched_by = self.document.state.patches().iter().find(|patch| {
                matches!(patch.life(), Life::Enabled)
                    && patch.objects().iter().any(|o| o.name() == Some(name))
            });
            if self.document.state.is_loaded(Some(name)) || is_about_to_come(object, seen.as_deref()) {
                continue;
            }
            match patched_by.map(|patch| patch.name().to_owned()) {
                // Of what comes just now the hook will say.
                Some(_) if self.in_loader()?.is_some() => {}
                Some(patch) => self.notes.push(format!(
                    "{name} was loaded after patch '{patch}' was enabled, which does not change it; disable and enable \
                     '{patch}'"
                )),
                None => {
                    let event = Event::ObjectComing { object: name.to_owned(), misfits: Vec::new() };
                    self.step(event)?;
                }
            }
        }
        Ok(())
    }

    /// Tells of a target that may have stacks which only a scan of all memory finds.
    fn note_contexts(&mut self, objects: &Objects<'_>, options: Options) {
        if !options.scan_memory
            && let Some(switcher) = contexts::switcher(objects)
        {
            self.notes.push(switcher.to_string());
        }
    }

    fn still_in_transition(&mut self, name: &str, hindrances: Vec<Hindrance>) -> Error {
        Error::InTransition { patch: name.to_owned(), blocked: self.describe(hindrances) }
    }

    fn report(&self, name: &str, already: Option<AlreadySo>) -> Report {
        let state = &self.document.state;
        let replaced_before = |name: &str| self.replaced_before.iter().any(|before| before == name);
        let replaced =
            state.patches().iter().filter(|p| p.life() == Life::Replaced && !replaced_before(p.name()));
        Report {
            patch: name.to_owned(),
            life: state.patch_named(name).map(|p| p.life()),
            already: already.map(|a| a.to_string()),
            replaced: replaced.map(|p| p.name().to_owned()).collect(),
            cost: self.cost_so_far(),
            forced: Vec::new(),
            notes: self.notes.clone(),
        }
    }
}
