//! Which objects never go.

use crate::objects::{Objects, Role};
use std::collections::BTreeSet;

impl Objects<'_> {
    /// The numbers of the objects that stay as long as the process: the program, the loader, the vDSO, and all that the program
    /// needs, directly or not.
    pub(crate) fn permanent(&self) -> BTreeSet<usize> {
        let mut permanent: BTreeSet<usize> =
            self.iter().filter(|object| object.role() != Role::Library).map(|object| object.id().0).collect();
        let mut fresh = vec![self.main()];
        while let Some(object) = fresh.pop() {
            let Ok(needed) = object.dynamic().and_then(|dynamic| dynamic.needed(&object.pages)) else {
                continue;
            };
            for name in needed {
                let named = |other: &&super::Object<'_>| other.namespace() == 0 && other.is_called(&name);
                if let Some(other) = self.iter().find(named)
                    && permanent.insert(other.id().0)
                {
                    fresh.push(other);
                }
            }
        }
        permanent
    }
}
