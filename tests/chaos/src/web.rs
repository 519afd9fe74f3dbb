//! What the servers share: the list, its pictures, the counts, and what is answered to whom.

use crate::Options;
use crate::behaviour::{Behaviour, Site};
use crate::counts::Counts;
use crate::names::Names;
use crate::picture::Pictures;
use crate::random::number;
use crate::redirect::redirect;
use crate::reply::{Reply, reply};
use crate::rows::{Row, host};

pub(crate) struct Web {
    pub(crate) options: Options,
    pub(crate) pictures: Pictures,
    pub(crate) rows: Vec<Row>,
    pub(crate) counts: Counts,
    pub(crate) names: Names,
    /// Of the plain HTTP server.
    pub(crate) port: u16,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// With its port, if it has one.
    pub(crate) host: &'a str,
    /// Path and query.
    pub(crate) target: &'a str,
    pub(crate) is_tls: bool,
}

impl Web {
    /// Answers a request, and counts it for its row.
    pub(crate) fn reply(&self, asked: &Asked<'_>) -> Reply {
        if asked.target == "/robots.txt" {
            return robots_txt(asked.host);
        }
        let Some((row, behaviour, rest)) = self.find(asked.target) else { return Reply::status(404) };
        let is_first = self.counts.row(row) == 0;
        let choice = number(self.options.seed, "variant", row as u64) as usize;
        redirect(self, (row, behaviour, choice), rest, asked)
            .unwrap_or_else(|| reply(self, row, behaviour, choice, is_first))
    }

    /// Whether a request is for an ordinary picture that nobody has asked for before; counts it if so.
    pub(crate) fn is_new_picture(&self, target: &str) -> bool {
        use Behaviour::{Gif, Jpeg, Png, Webp};
        match self.find(target) {
            Some((row, Jpeg | Png | Webp | Gif, _)) if !self.counts.is_known(row) => {
                self.counts.row(row);
                true
            }
            _ => false,
        }
    }

    /// The row of a path `/behaviour/row/rest`.
    fn find<'a>(&self, target: &'a str) -> Option<(usize, Behaviour, &'a str)> {
        let (slug, rest) = target.strip_prefix('/')?.split_once('/')?;
        let (row, rest) = rest.split_once('/')?;
        let row = row.parse().ok()?;
        let Row { behaviour, duplicate_of: None, .. } = self.rows.get(row)? else { return None };
        (behaviour.slug() == slug).then_some((row, *behaviour, rest))
    }
}

fn robots_txt(asked: &str) -> Reply {
    let name = asked.rsplit_once(':').map_or(asked, |(name, _port)| name);
    if name == host(Site::RobotsDown, 0, 1) {
        return Reply::status(503);
    }
    if name != host(Site::Robots, 0, 1) {
        return Reply::status(404);
    }
    let (closed, open) = (Behaviour::RobotsDisallowed.slug(), Behaviour::RobotsAllowed.slug());
    let rules = format!(
        "# Not all of it.\nUser-agent: otherbot\nDisallow: /\n\nUser-agent: *\nDisallow: /{closed}/\nAllow: /{open}/\n"
    );
    Reply { body: rules.into(), ..Reply::status(200) }
}
