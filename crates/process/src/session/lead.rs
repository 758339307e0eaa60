//! Where the entries of changing functions lead: to stubs while a transition runs, and straight to what is in effect before and after.

use crate::canary::canary;
use crate::code::entry::Installed;
use crate::session::Session;
use crate::state::document::{Arena, Site};
use crate::{Error, RemoteAddr, Result};
use ugraft_core::{Change, Implementation};

impl Session {
    /// Leads the entry of a changing function to its stub.
    pub(super) fn lead(&self, change: &Change, arena: &Arena) -> Result<()> {
        let site = self.document.site(&change.func);
        let site = site.ok_or_else(|| Error::Damaged(format!("the function {} has no site", change.func)))?;
        if canary!("settle-early") {
            return self.lead_to(site, self.document.landing(&change.func, change.goal)?);
        }
        let stub = Some(arena.stub(&change.func)?);
        match change.source {
            Implementation::Original => self.lead_anew(site, stub),
            Implementation::Patch(_) => self.lead_to(site, stub),
        }
    }

    /// Leads an entry to `landing`, or back to its original.
    pub(super) fn lead_to(&self, site: &Site, landing: Option<RemoteAddr>) -> Result<()> {
        if self.can_go(&site.func) {
            match self.installed(site)? {
                Some(Installed::Redirect(_) | Installed::Half(_)) => {}
                // Its library is not the one that it was, or not there at all. A thread may be in the bytes of a new one's entry:
                // what is to be done there is done when nobody is (see `Session::settle_libraries`).
                _ => return Ok(()),
            }
        }
        self.lead_anew(site, landing)
    }

    /// The same for an entry that may hold its original bytes, in which no thread is.
    pub(crate) fn lead_anew(&self, site: &Site, landing: Option<RemoteAddr>) -> Result<()> {
        if matches!(self.installed(site)?, None | Some(Installed::Other)) && self.can_go(&site.func) {
            return Ok(());
        }
        let writes = match landing {
            Some(landing) => site.entry.entry_to(landing).map_err(|e| Error::Damaged(e.to_string()))?,
            None => site.entry.restore(),
        };
        for write in writes {
            self.target.memory().write(write.addr, &write.bytes)?;
        }
        Ok(())
    }

    /// Leads the entries of functions straight to what they are by now; to be done with all threads stopped.
    pub(super) fn settle(&self, changes: &[Change]) -> Result<()> {
        for change in changes {
            let Some(site) = self.document.site(&change.func) else { continue };
            let implementation = self.document.state.steady(&change.func);
            self.lead_to(site, self.document.landing(&change.func, implementation)?)?;
        }
        Ok(())
    }

    /// The same for functions of libraries that can come, and the hook is given a table without the transition.
    pub(super) fn settle_coming(&mut self) -> Result<()> {
        for site in self.document.sites.iter().filter(|site| self.can_go(&site.func)) {
            let implementation = self.document.state.steady(&site.func);
            self.lead_to(site, self.document.landing(&site.func, implementation)?)?;
        }
        self.publish()
    }

    pub(super) fn is_settled(&self, changes: &[Change]) -> Result<bool> {
        for change in changes {
            let Some(site) = self.document.site(&change.func) else { continue };
            let implementation = self.document.state.steady(&change.func);
            let wanted = match self.document.landing(&change.func, implementation)? {
                Some(landing) => Installed::Redirect(landing),
                None => Installed::Original,
            };
            if self.installed(site)?.is_some_and(|installed| installed != wanted) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn leads_to_stubs(&self, changes: &[Change]) -> Result<bool> {
        let Some(arena) = &self.document.arena else { return Ok(false) };
        for change in changes {
            let Some(site) = self.document.site(&change.func) else { continue };
            let stub = arena.stub(&change.func)?;
            if let Some(Installed::Redirect(to) | Installed::Half(to)) = self.installed(site)?
                && to == stub
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
