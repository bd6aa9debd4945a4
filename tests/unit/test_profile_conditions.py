"""What a board tells of itself, from a file system of the test's own: readings, and nothing where there are none."""

from pathlib import Path

import pytest

from toolkit.profile.conditions import ConditionReader
from toolkit.profile.power import BoardPower
from toolkit.profile.schema import Limits

CPU = "sys/devices/system/cpu/cpu0"


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    write(tmp_path, "proc/cpuinfo", "processor : 0\nFeatures : fp asimd asimddp crc32")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "41000")
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", "52300")
    write(tmp_path, f"{CPU}/cpufreq/scaling_cur_freq", "1800000")
    write(tmp_path, f"{CPU}/thermal_throttle/core_throttle_count", "3")
    write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "1000000")
    write(tmp_path, "sys/class/powercap/intel-rapl:0:0/energy_uj", "900000")
    write(tmp_path, "sys/class/powercap/intel-rapl:0/max_energy_range_uj", "5000000")
    return tmp_path


def test_a_board_that_tells_everything_is_read(board: Path):
    reader = ConditionReader(root=board)
    write(board, "sys/class/thermal/thermal_zone1/temp", "71500")
    write(board, f"{CPU}/cpufreq/scaling_cur_freq", "1200000")
    write(board, f"{CPU}/thermal_throttle/core_throttle_count", "4")
    write(board, "sys/class/powercap/intel-rapl:0/energy_uj", "3500000")
    told = reader.conditions(copy_bytes_per_s=2e9)
    assert told.cpu_features == ("asimd", "asimddp")
    assert (told.temperature_c_before, told.temperature_c_after) == (52.3, 71.5)
    assert (told.clock_mhz_before, told.clock_mhz_after) == (1800.0, 1200.0)
    assert told.throttle == ("held back for heat",)
    # The inner zone is a part of the outer one.
    assert told.energy_j == 2.5
    assert told.copy_bytes_per_s == 2e9


def test_an_energy_counter_that_began_anew_is_not_taken_backwards(board: Path):
    reader = ConditionReader(root=board)
    write(board, "sys/class/powercap/intel-rapl:0/energy_uj", "500000")
    assert reader.conditions(copy_bytes_per_s=None).energy_j == 4.5


def test_a_board_that_tells_nothing_gets_no_guess(tmp_path: Path):
    told = ConditionReader(root=tmp_path).conditions(copy_bytes_per_s=None)
    assert told.temperature_c_before is None
    assert told.clock_mhz_after is None
    assert told.energy_j is None
    assert (told.cpu_features, told.throttle, told.power) == ((), (), "")


def ina219(root: Path, microwatts: int) -> None:
    write(root, "sys/class/hwmon/hwmon0/name", "cpu_thermal")
    write(root, "sys/class/hwmon/hwmon1/name", "ina219")
    write(root, "sys/class/hwmon/hwmon1/power1_input", str(microwatts))


def test_power_becomes_energy_by_the_time_it_was_drawn(tmp_path: Path):
    now = [100.0]
    ina219(tmp_path, 2_000_000)
    meter = BoardPower(tmp_path, clock=lambda: now[0], every_s=0)
    assert meter.energy_j == 0.0
    now[0] += 3.0
    meter.sample()
    ina219(tmp_path, 4_000_000)
    now[0] += 1.0
    meter.sample()
    # 2 W for three seconds, then from 2 to 4 W within one.
    assert meter.energy_j == pytest.approx(6 + 3)
    write(tmp_path, "sys/class/hwmon/hwmon1/power1_input", "busy")
    now[0] += 1.0
    meter.sample()
    assert meter.energy_j == pytest.approx(9)


def test_a_jetsons_sensor_tells_of_its_supply_and_not_of_its_parts(tmp_path: Path):
    place = "sys/class/hwmon/hwmon3"
    write(tmp_path, f"{place}/name", "ina3221")
    for channel, label, millivolts, milliamps in (
        (1, "VDD_CPU_GPU_CV", 5000, 400),
        (2, "VDD_IN", 5000, 1000),
    ):
        write(tmp_path, f"{place}/in{channel}_label", label)
        write(tmp_path, f"{place}/in{channel}_input", str(millivolts))
        write(tmp_path, f"{place}/curr{channel}_input", str(milliamps))
    now = [0.0]
    meter = BoardPower(tmp_path, clock=lambda: now[0], every_s=0)
    now[0] = 2.0
    meter.sample()
    assert meter.energy_j == pytest.approx(10)


def test_a_boards_sensor_is_asked_while_it_is_measured(tmp_path: Path):
    ina219(tmp_path, 3_000_000)
    reader = ConditionReader(root=tmp_path)
    told = reader.conditions(copy_bytes_per_s=None)
    reader.close()
    assert told.board_energy_j is not None
    assert told.energy_s is not None
    assert told.energy_j is None
    limited = ConditionReader(Limits(cpu_percent=20, memory_mb=64), root=tmp_path)
    assert limited.conditions(copy_bytes_per_s=None).board_energy_j is None
    limited.close()
    assert BoardPower(tmp_path / "nowhere").energy_j is None


def test_an_emulated_board_has_not_its_hosts_energy(board: Path):
    reader = ConditionReader(Limits(cpu_percent=20, memory_mb=64), root=board)
    write(board, "sys/class/powercap/intel-rapl:0/energy_uj", "3500000")
    told = reader.conditions(copy_bytes_per_s=None)
    assert (told.energy_j, told.swap_mb) == (None, None)
    assert told.free_memory_mb is not None
    assert told.free_memory_mb <= 64


def test_a_raspberry_pi_says_why_it_holds_back(tmp_path: Path):
    write(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", "50005")
    told = ConditionReader(root=tmp_path).conditions(copy_bytes_per_s=None)
    assert told.throttle == ("throttled", "under-voltage")


@pytest.mark.parametrize(
    ("files", "power"),
    [
        ({"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Charging"}, "mains"),
        (
            {"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/status": "Discharging"},
            "battery",
        ),
        ({"BAT0/type": "Battery", "BAT0/status": "Unknown"}, ""),
    ],
)
def test_mains_or_battery_where_the_system_tells(tmp_path: Path, files: dict[str, str], power: str):
    for name, text in files.items():
        write(tmp_path, f"sys/class/power_supply/{name}", text)
    assert ConditionReader(root=tmp_path).conditions(copy_bytes_per_s=None).power == power
