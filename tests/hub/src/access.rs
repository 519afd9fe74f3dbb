//! Who may do what.

use std::collections::BTreeSet;

use crate::answer::Answer;
use crate::question::Question;
use crate::store::{Gate, Repo, RepoKind, State};

/// What a token is good for.
#[derive(Clone, Debug)]
pub struct Access {
    pub(crate) user: String,
    pub(crate) may_write: bool,
    pub(crate) organizations: BTreeSet<String>,
    granted: BTreeSet<String>,
}

impl Access {
    /// A token of a user, for reading.
    pub fn read(user: &str) -> Self {
        let (organizations, granted) = (BTreeSet::new(), BTreeSet::new());
        Self { user: user.to_owned(), may_write: false, organizations, granted }
    }

    /// A token of a user, for writing too, where the user may.
    #[must_use]
    pub fn write(user: &str) -> Self {
        Self { may_write: true, ..Self::read(user) }
    }

    /// The user belongs to an organization.
    #[must_use]
    pub fn member(mut self, organization: &str) -> Self {
        self.organizations.insert(organization.to_owned());
        self
    }

    /// The user has been let into a gated repository, `owner/name`.
    #[must_use]
    pub fn granted(mut self, repo: &str) -> Self {
        self.granted.insert(repo.to_owned());
        self
    }

    pub(crate) fn owns(&self, namespace: &str) -> bool {
        self.user == namespace || self.organizations.contains(namespace)
    }
}

/// For what a repository is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// What it is, which a gate does not hide.
    Info,
    Listing,
    Content,
    /// To propose changes, for which a token for reading is enough.
    Propose,
    Write,
}

/// Whose token a question has, or nobody's.
pub(crate) fn asker<'a>(state: &'a State, question: &Question) -> Result<Option<&'a Access>, Answer> {
    let Some(value) = question.header("authorization") else { return Ok(None) };
    let token = value.strip_prefix("Bearer ").unwrap_or_default();
    let unknown = || Answer::refusal(401, None, "Invalid credentials in Authorization header");
    state.tokens.get(token).map(Some).ok_or_else(unknown)
}

/// Nobody may do this, so somebody is asked for.
pub(crate) fn anonymous() -> Answer {
    Answer::refusal(401, None, "Invalid username or password.")
}

/// A repository, if the asker may use it so.
pub(crate) fn repo<'a>(
    state: &'a State,
    question: &Question,
    kind: RepoKind,
    name: &str,
    need: Need,
) -> Result<&'a Repo, Answer> {
    let asker = asker(state, question)?;
    let repo = state.repos.get(&(kind, name.to_owned()));
    let is_own = |repo: &Repo| asker.is_some_and(|access| access.owns(repo.owner()));
    let Some(repo) = repo.filter(|repo| !repo.private || is_own(repo)) else {
        // That there is such a repository is not told to those who may not see it.
        return Err(if asker.is_some() {
            Answer::refusal(404, Some("RepoNotFound"), "Repository not found")
        } else {
            Answer::refusal(401, state.settings.code_at_401.then_some("RepoNotFound"), "Invalid username or password.")
        });
    };
    let is_gated = match need {
        Need::Info => false,
        Need::Listing => repo.gate == Gate::Listings,
        Need::Content | Need::Propose | Need::Write => repo.gate != Gate::Open,
    };
    if is_gated && !is_own(repo) && !asker.is_some_and(|access| access.granted.contains(name)) {
        let (kind, page) = (kind.name(), format!("https://huggingface.co/{}{name}", kind.prefix()));
        return Err(match asker {
            None => Answer::refusal(
                401,
                Some("GatedRepo"),
                &format!(
                    "Access to {kind} {name} is restricted. You must have access to it and be authenticated to access it. \
                     Please log in."
                ),
            ),
            Some(_) => Answer::refusal(
                403,
                Some("GatedRepo"),
                &format!(
                    "Access to {kind} {name} is restricted and you are not in the authorized list. Visit {page} to ask for \
                     access."
                ),
            ),
        });
    }
    match (need, asker) {
        (Need::Propose | Need::Write, None) => Err(anonymous()),
        (Need::Write, Some(access)) if !access.may_write => Err(read_only()),
        (Need::Write, Some(_)) if !is_own(repo) => Err(Answer::refusal(
            403,
            None,
            "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request",
        )),
        _ => Ok(repo),
    }
}

pub(crate) fn read_only() -> Answer {
    Answer::refusal(403, None, "You must use a write token for this: yours is for reading.")
}
