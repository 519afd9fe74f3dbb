//! What a query may be, judged by its text alone, before any shard is there.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::Volatility;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::ast::{
    Expr, Function, GroupByExpr, Ident, ObjectName, Query, Select, SelectItem, SetExpr, Statement, TableFactor, Visit,
    Visitor,
};
use shards::columns;

use super::order;
use crate::condition::in_words;
use crate::manifest::nearest;

/// The only table.
pub(super) const TABLE: &str = "input";

/// How a query reads its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// A row of the result follows from one row of the table, so that partitions can be looked at one by one.
    Row,
    /// It may depend on any other row, but not on the order in which they are met.
    AnyOrder,
    /// It may depend on any other row.
    Whole,
}

/// Checks that `query` is one SELECT over [`TABLE`] that gives the same result each time and does not look into images. The
/// error says what it is not. Whatever is not surely something less is [`Reach::Whole`].
pub(super) fn check(query: &str) -> Result<Reach, String> {
    let mut statements = DFParser::parse_sql(&format!("\n{query}")).map_err(|error| in_words(&error, query))?;
    let statement = match (statements.pop_front(), statements.len()) {
        (Some(statement), 0) => statement,
        (None, _) => return Err("it is empty".to_owned()),
        (Some(_), more) => return Err(format!("it has {} statements; write one SELECT", more + 1)),
    };
    let DataFusionStatement::Statement(statement) = statement else { return Err(not_a_select(&statement)) };
    let Statement::Query(select) = statement.as_ref() else { return Err(not_a_select(&statement)) };
    let context = SessionContext::new();
    let state = context.state();
    let mut judge = Judge {
        state: &state,
        reach: Reach::Row,
        tables: BTreeSet::from([TABLE.to_owned()]),
        depth: 0,
        images: 0,
        selected_images: 0,
    };
    if let ControlFlow::Break(fault) = select.visit(&mut judge) {
        return Err(fault);
    }
    if judge.images > judge.selected_images {
        return Err(format!(
            "{0} is used in an expression, but images never enter a query: select {0} or leave it out, and instead of \
             octet_length({0}), digests and the like use columns such as width, height and sha256",
            columns::IMAGE
        ));
    }
    if !may_have_key(&select.body) {
        return Err(format!("the result has no column {}, which says what its rows are: select it too", columns::KEY));
    }
    Ok(match judge.reach {
        Reach::Whole if order::does_not_matter(select, &|name| state.aggregate_functions().contains_key(name)) => {
            Reach::AnyOrder
        }
        reach => reach,
    })
}

fn not_a_select(statement: &impl std::fmt::Display) -> String {
    let text = statement.to_string();
    let verb = text.split_whitespace().next().unwrap_or_default().to_uppercase();
    format!("it is {verb}; write a SELECT, a stage changes nothing but its own output")
}

/// The name that SQL makes of an identifier.
pub(super) fn name(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// Whether it is a column of that name, with or without a table's name.
pub(super) fn is_column(expression: &Expr, column: &str) -> bool {
    match expression {
        Expr::Identifier(ident) => name(ident) == column,
        Expr::CompoundIdentifier(parts) => parts.len() == 2 && parts.last().is_some_and(|ident| name(ident) == column),
        _ => false,
    }
}

fn may_have_key(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => select.projection.iter().any(|item| match item {
            SelectItem::UnnamedExpr(expression) => is_column(expression, columns::KEY),
            SelectItem::ExprWithAlias { alias, .. } => name(alias) == columns::KEY,
            SelectItem::ExprWithAliases { .. } | SelectItem::QualifiedWildcard(..) | SelectItem::Wildcard(_) => true,
        }),
        SetExpr::Query(query) => may_have_key(&query.body),
        SetExpr::SetOperation { left, .. } => may_have_key(left),
        _ => false,
    }
}

fn names<T>(functions: &HashMap<String, T>) -> impl Iterator<Item = &str> {
    functions.keys().map(String::as_str)
}

struct Judge<'a> {
    state: &'a SessionState,
    reach: Reach,
    /// The table and the names of common table expressions.
    tables: BTreeSet<String>,
    /// Queries around the present place.
    depth: usize,
    /// How often the image column is named in an expression, and how often that is all that is selected.
    images: usize,
    selected_images: usize,
}

impl Judge<'_> {
    fn whole_if(&mut self, condition: bool) {
        if condition {
            self.reach = Reach::Whole;
        }
    }

    /// Refuses a body that is no SELECT.
    fn body(&mut self, body: &SetExpr) -> ControlFlow<String> {
        match body {
            SetExpr::Select(_) => ControlFlow::Continue(()),
            SetExpr::Query(_) | SetExpr::Values(_) => {
                self.reach = Reach::Whole;
                ControlFlow::Continue(())
            }
            SetExpr::SetOperation { left, right, .. } => {
                self.reach = Reach::Whole;
                self.body(left)?;
                self.body(right)
            }
            SetExpr::Table(_) => ControlFlow::Break("TABLE is not supported; write SELECT * FROM input".to_owned()),
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                ControlFlow::Break("it changes a table; write a SELECT".to_owned())
            }
        }
    }

    fn image_in(&mut self, item: &SelectItem) -> ControlFlow<String> {
        let is_image = |expression: &Expr| is_column(expression, columns::IMAGE);
        match item {
            SelectItem::UnnamedExpr(expression) if is_image(expression) => self.selected_images += 1,
            SelectItem::ExprWithAlias { expr, alias } => match (is_image(expr), name(alias) == columns::IMAGE) {
                (true, true) => self.selected_images += 1,
                (true, false) => return ControlFlow::Break(format!("{} must keep its name", columns::IMAGE)),
                (false, true) => {
                    return ControlFlow::Break(format!("{expr} cannot take the place of {}", columns::IMAGE));
                }
                (false, false) => {}
            },
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn function(&mut self, function: &Function) -> ControlFlow<String> {
        let called = function.name.0.iter().map(|part| part.as_ident().map_or_else(|| part.to_string(), name));
        let called = called.collect::<Vec<_>>().join(".");
        self.whole_if(function.over.is_some() || function.filter.is_some() || !function.within_group.is_empty());
        if let Some(scalar) = self.state.scalar_functions().get(&called) {
            if scalar.signature().volatility != Volatility::Immutable {
                return ControlFlow::Break(format!(
                    "{called} gives another value each time, but a stage's output must follow from its input alone"
                ));
            }
            return ControlFlow::Continue(());
        }
        self.reach = Reach::Whole;
        let known = |name: &str| {
            self.state.aggregate_functions().contains_key(name)
                || self.state.window_functions().contains_key(name)
                || self.state.higher_order_functions().contains_key(name)
        };
        // Functions that the planner knows and the registry does not.
        if known(&called) || called == "unnest" {
            return ControlFlow::Continue(());
        }
        let mut all: Vec<&str> = names(self.state.scalar_functions())
            .chain(names(self.state.aggregate_functions()))
            .chain(names(self.state.window_functions()))
            .collect();
        all.sort_unstable();
        let meant = nearest(&called, all.into_iter()).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
        ControlFlow::Break(format!("there is no function {called}{meant}"))
    }
}

impl Visitor for Judge<'_> {
    type Break = String;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<String> {
        if let Some(with) = &query.with {
            self.tables.extend(with.cte_tables.iter().map(|table| name(&table.alias.name)));
        }
        let plain = query.with.is_none()
            && query.order_by.is_none()
            && query.limit_clause.is_none()
            && query.fetch.is_none()
            && query.pipe_operators.is_empty();
        self.whole_if(self.depth > 0 || !plain);
        self.depth += 1;
        self.body(&query.body)
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<String> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<String> {
        if select.into.is_some() {
            return ControlFlow::Break("it makes a table; write a SELECT without INTO".to_owned());
        }
        let grouped = match &select.group_by {
            GroupByExpr::All(_) => true,
            GroupByExpr::Expressions(expressions, modifiers) => !expressions.is_empty() || !modifiers.is_empty(),
        };
        let one_table = match select.from.as_slice() {
            [from] => from.joins.is_empty() && matches!(&from.relation, TableFactor::Table { sample: None, .. }),
            _ => false,
        };
        let plain = one_table
            && !grouped
            && select.distinct.is_none()
            && select.top.is_none()
            && select.lateral_views.is_empty()
            && select.prewhere.is_none()
            && select.connect_by.is_empty()
            && select.cluster_by.is_empty()
            && select.distribute_by.is_empty()
            && select.sort_by.is_empty()
            && select.having.is_none()
            && select.named_window.is_empty()
            && select.qualify.is_none();
        self.whole_if(!plain);
        select.projection.iter().try_for_each(|item| self.image_in(item))
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<String> {
        let known = match relation.0.as_slice() {
            [part] => part.as_ident().is_some_and(|ident| self.tables.contains(&name(ident))),
            _ => false,
        };
        if known {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(format!("there is no table {relation}; the stage's input is the table {TABLE}"))
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<String> {
        match table {
            TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => {
                ControlFlow::Break("TABLESAMPLE takes other rows each time; use a stage of kind subset".to_owned())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<String> {
        if is_column(expression, columns::IMAGE) {
            self.images += 1;
        }
        match expression {
            Expr::Function(function) => self.function(function),
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_over_single_rows_are_told_from_those_over_the_whole() {
        for query in [
            "SELECT * FROM input",
            "SELECT * FROM input WHERE width > 256 AND caption LIKE '%cat%'",
            "select t.key, T.image, upper(caption) AS caption, width * height / 1e6 AS megapixels from Input t",
            "SELECT key, \"image\" AS image, CASE WHEN width > 3 THEN 1 END AS big FROM input WHERE key IN ('a', 'b');",
            "SELECT * EXCLUDE (image) FROM input WHERE regexp_like(url, '^https') AND coalesce(caption, '') <> ''",
        ] {
            assert_eq!(check(query), Ok(Reach::Row), "{query}");
        }
        for (query, reach) in [
            ("SELECT DISTINCT key FROM input", Reach::AnyOrder),
            ("SELECT key FROM input ORDER BY width", Reach::AnyOrder),
            ("SELECT key FROM input LIMIT 3", Reach::Whole),
            ("SELECT key FROM input OFFSET 3", Reach::Whole),
            ("SELECT min(key) AS key FROM input", Reach::AnyOrder),
            ("SELECT min(key) AS key FROM input GROUP BY caption", Reach::AnyOrder),
            ("SELECT key, row_number() OVER (PARTITION BY caption ORDER BY key) AS n FROM input", Reach::AnyOrder),
            ("SELECT key, count(*) OVER w AS n FROM input WINDOW w AS (PARTITION BY caption)", Reach::Whole),
            ("SELECT key FROM input QUALIFY row_number() OVER (PARTITION BY url ORDER BY key) = 1", Reach::AnyOrder),
            ("SELECT a.key, a.image FROM input a JOIN input b ON a.url = b.caption", Reach::Whole),
            ("SELECT a.key FROM input a, input b", Reach::Whole),
            ("SELECT * FROM input WHERE key IN (SELECT max(key) FROM input GROUP BY url)", Reach::Whole),
            ("SELECT * FROM input WHERE EXISTS (SELECT 1 FROM input i WHERE i.width > 5)", Reach::Whole),
            ("SELECT * FROM (SELECT * FROM input)", Reach::AnyOrder),
            ("WITH wide AS (SELECT * FROM input WHERE width > height) SELECT * FROM wide", Reach::AnyOrder),
            ("SELECT * FROM input WHERE width > 3 UNION ALL SELECT * FROM input WHERE width < 2", Reach::AnyOrder),
            ("SELECT key, unnest([1, 2]) AS n FROM input", Reach::AnyOrder),
        ] {
            assert_eq!(check(query), Ok(reach), "{query}");
        }
    }

    #[test]
    fn what_is_no_single_select_over_the_input_is_refused() {
        for (query, words) in [
            ("", "empty"),
            ("SELECT * FROM input; SELECT * FROM input", "2 statements"),
            ("SELECT key FROM input WHERE", "ends before it is complete"),
            ("SELECT key FROM input WHERE width > > 3", "found: > (column 37)"),
            ("DROP TABLE input", "DROP"),
            ("CREATE TABLE t AS SELECT * FROM input", "CREATE"),
            ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'", "CREATE"),
            ("COPY input TO '/tmp/x.parquet'", "COPY"),
            ("INSERT INTO input VALUES (1)", "INSERT"),
            ("DELETE FROM input", "DELETE"),
            ("SET datafusion.execution.batch_size = 1", "SET"),
            ("EXPLAIN SELECT * FROM input", "EXPLAIN"),
            ("SELECT key INTO t FROM input", "INTO"),
            ("SELECT * FROM download", "no table download"),
            ("SELECT * FROM '/etc/passwd'", "no table"),
            ("SELECT * FROM information_schema.tables", "no table"),
            ("SELECT i.value AS key FROM generate_series(1, 3) i", "no table generate_series"),
            ("SELECT key, octet_length(image) AS bytes FROM input", "octet_length"),
            ("SELECT key FROM input i WHERE i.image IS NULL", "octet_length"),
            ("SELECT key, image AS picture FROM input", "keep its name"),
            ("SELECT key, caption AS image FROM input", "cannot take the place"),
            ("SELECT key FROM input WHERE random() < 0.1", "another value"),
            ("SELECT key, now() AS at FROM input", "another value"),
            ("SELECT key, current_date AS at FROM input", "another value"),
            ("SELECT key FROM input TABLESAMPLE (10 PERCENT)", "subset"),
            ("SELECT caption FROM input", "no column key"),
            ("SELECT key, uper(caption) AS caption FROM input", "did you mean upper"),
        ] {
            let error = check(query).unwrap_err();
            assert!(error.contains(words), "{query}: {error}");
        }
    }
}
