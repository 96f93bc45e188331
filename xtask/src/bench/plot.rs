//! Charts of the bench's curves, as SVG files.

use std::path::Path;

use plotters::prelude::*;

use super::curves::{Chart, Point};
use crate::Error;

/// Width and height in pixels.
const SIZE: (u32, u32) = (900, 340);
/// Room above the highest point.
const HEADROOM: f64 = 1.15;

type Part = (&'static str, RGBColor, fn(&Point) -> f64);

/// Draws records a second, median with the lowest and the highest round, beside the processor time per record.
///
/// # Errors
/// If the file can't be written.
pub fn draw(chart: &Chart, path: &Path) -> Result<(), Error> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let panels = area.split_evenly((1, 2));
    let rates: [Part; 3] = [
        ("median", BLUE, |p| p.rate.median),
        ("lowest", RGBColor(170, 190, 230), |p| p.rate.lowest),
        ("highest", RGBColor(170, 190, 230), |p| p.rate.highest),
    ];
    let costs: [Part; 3] = [
        ("worker", RED, |p| p.cost.worker),
        ("broker", RGBColor(230, 140, 20), |p| p.cost.broker),
        ("database", RGBColor(30, 130, 60), |p| p.cost.database),
    ];
    panel(&panels[0], chart, "records/s", &rates)?;
    panel(&panels[1], chart, "µs of processor time per record", &costs)?;
    area.present()?;
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    chart: &Chart,
    title: &str,
    parts: &[Part],
) -> Result<(), Error> {
    let xs = || chart.points.iter().map(|p| p.x);
    let x = xs().fold(f64::MAX, f64::min)..xs().fold(0.0, f64::max) * 1.001;
    let top = chart.points.iter().flat_map(|p| parts.iter().map(move |(_, _, y)| y(p))).fold(1.0, f64::max) * HEADROOM;
    let mut builder = ChartBuilder::on(area);
    builder.margin(10).caption(title, ("sans-serif", 15)).x_label_area_size(38).y_label_area_size(62);
    let mut context = builder.build_cartesian_2d(x.log_scale(), 0.0..top)?;
    let (x_label, y_label) = (|x: &f64| short(*x), |y: &f64| short(*y));
    context.configure_mesh().x_desc(chart.x).x_label_formatter(&x_label).y_label_formatter(&y_label).draw()?;
    for (name, color, y) in parts {
        let style = color.stroke_width(2);
        let points = || chart.points.iter().map(|p| (p.x, y(p)));
        let line = context.draw_series(LineSeries::new(points(), style))?;
        line.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style));
        context.draw_series(points().map(|at| Circle::new(at, 3, color.filled())))?;
    }
    context.configure_series_labels().background_style(WHITE.mix(0.8)).draw()?;
    Ok(())
}

/// `1500` as `1.5k`.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{}M", value / 1e6),
        v if v >= 1e3 => format!("{}k", value / 1e3),
        _ => format!("{value}"),
    }
}
