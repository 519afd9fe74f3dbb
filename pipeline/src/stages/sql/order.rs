//! Whether a query's result depends on the order in which rows are met, judged by its text.
//!
//! One that does not may be answered by several machines, each of which sees a part of the rows at its own time. Whatever is not
//! surely so counts as one that does.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Distinct, Expr, Function, OrderByExpr, OrderByKind, Query, Select, SetExpr, SetOperator, Visit, Visitor, WindowType,
};
use shards::columns;

use super::statement::{is_column, name};

/// Aggregates that come to the same in any order, to the last bit. Sums of fractions do not.
const AGGREGATES: [&str; 8] = ["count", "min", "max", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor"];

/// Whether `query`, which is one that a stage takes, gives the same result in whichever order rows are met: where an order matters,
/// in LIMIT and in windows, it has to end with the key, which no two rows share. Joins and subqueries in conditions are left out:
/// they are not dealt out.
pub(super) fn does_not_matter(query: &Query, is_aggregate: &dyn Fn(&str) -> bool) -> bool {
    query.visit(&mut Judge { is_aggregate }).is_continue()
}

struct Judge<'a> {
    is_aggregate: &'a dyn Fn(&str) -> bool,
}

fn only_if(condition: bool) -> ControlFlow<()> {
    if condition { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

fn ends_with_key(order: &[OrderByExpr]) -> bool {
    order.last().is_some_and(|last| is_column(&last.expr, columns::KEY))
}

/// Whether the parts of a set operation can be.
fn is_dealt_out(body: &SetExpr) -> ControlFlow<()> {
    match body {
        // Both are looked at by themselves.
        SetExpr::Select(_) | SetExpr::Query(_) => ControlFlow::Continue(()),
        SetExpr::SetOperation { op: SetOperator::Union, left, right, .. } => {
            is_dealt_out(left)?;
            is_dealt_out(right)
        }
        _ => ControlFlow::Break(()),
    }
}

impl Judge<'_> {
    fn function(&self, function: &Function) -> ControlFlow<()> {
        let called = function.name.0.last().and_then(|part| part.as_ident()).map(name).unwrap_or_default();
        let any_order = AGGREGATES.contains(&called.as_str());
        match &function.over {
            Some(WindowType::WindowSpec(window)) => {
                let whole = window.order_by.is_empty() && window.window_frame.is_none();
                only_if(ends_with_key(&window.order_by) || whole && any_order)
            }
            Some(WindowType::NamedWindow(_)) => ControlFlow::Break(()),
            None => only_if(any_order || !(self.is_aggregate)(&called)),
        }
    }
}

impl Visitor for Judge<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let cut = query.limit_clause.is_some() || query.fetch.is_some();
        let sorted = query.order_by.as_ref().is_some_and(
            |order| matches!(&order.kind, OrderByKind::Expressions(expressions) if ends_with_key(expressions)),
        );
        only_if(!cut || sorted)?;
        is_dealt_out(&query.body)
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        let from_one = matches!(select.from.as_slice(), [from] if from.joins.is_empty());
        only_if(from_one && select.top.is_none() && !matches!(select.distinct, Some(Distinct::On(_))))
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        match expression {
            Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } => ControlFlow::Break(()),
            Expr::Function(function) => self.function(function),
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::statement::{Reach, check};

    #[test]
    fn what_depends_on_the_order_of_rows_is_left_to_one_machine() {
        for query in [
            "SELECT DISTINCT key, width FROM input",
            "SELECT min(key) AS key, count(*) AS n FROM input GROUP BY url HAVING count(DISTINCT caption) < 5",
            "SELECT key, image FROM input ORDER BY width DESC, key LIMIT 1000",
            "SELECT key FROM input QUALIFY row_number() OVER (PARTITION BY url ORDER BY width DESC, key) = 1",
            "SELECT i.key, sum(width) OVER (PARTITION BY url ORDER BY i.key) AS w FROM input i",
            "SELECT key, max(width) OVER (PARTITION BY url) AS w, upper(caption) AS caption FROM input",
            "WITH wide AS (SELECT * FROM input WHERE width > height) SELECT * FROM wide",
            "SELECT * FROM input WHERE width > 3 UNION ALL SELECT * FROM (SELECT * FROM input) WHERE width < 2",
        ] {
            assert_eq!(check(query), Ok(Reach::AnyOrder), "{query}");
        }
        for query in [
            "SELECT key FROM input LIMIT 3",
            "SELECT key FROM input ORDER BY width LIMIT 3",
            "SELECT key FROM input OFFSET 3",
            "SELECT key FROM input ORDER BY key, width LIMIT 3",
            "SELECT min(key) AS key, sum(width) AS w FROM input GROUP BY url",
            "SELECT min(key) AS key, first_value(url ORDER BY key) AS u FROM input GROUP BY caption",
            "SELECT key, row_number() OVER (PARTITION BY url ORDER BY width) AS n FROM input",
            "SELECT key, sum(width) OVER (PARTITION BY url) AS n FROM input",
            "SELECT key, count(*) OVER (ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n FROM input",
            "SELECT key, row_number() OVER w AS n FROM input WINDOW w AS (ORDER BY key)",
            "SELECT DISTINCT ON (url) key, url FROM input ORDER BY url, key",
            "SELECT a.key FROM input a JOIN input b ON a.url = b.caption",
            "SELECT a.key FROM input a, input b",
            "SELECT * FROM input WHERE key IN (SELECT max(key) FROM input GROUP BY url)",
            "SELECT * FROM input WHERE width > (SELECT min(width) FROM input)",
            "SELECT * FROM (SELECT * FROM input LIMIT 5)",
            "SELECT key FROM input EXCEPT SELECT key FROM input WHERE width < 5",
        ] {
            assert_eq!(check(query), Ok(Reach::Whole), "{query}");
        }
    }
}
