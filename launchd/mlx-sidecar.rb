# A formula for a tap. `brew services start mlx-sidecar` then takes the place of `mlx-sidecar service install`; the two
# refuse to run beside each other. The release workflow fills in what stands between at signs.
class MlxSidecar < Formula
  include Language::Python::Virtualenv

  desc "Daemon that owns every MLX model's weights and one prefix cache"
  homepage "@HOMEPAGE@"
  url "@URL@"
  sha256 "@SHA256@"
  license "MIT"

  depends_on arch: :arm64
  depends_on macos: :sonoma
  depends_on "python@3.13"

  # The names of libraries in wheels have no room for longer ones, and Homebrew would fail to write its own into them.
  preserve_rpath

  # mlx, grpcio and others come as wheels: building them takes an hour and Xcode.
  def install
    virtualenv_create(libexec, "python3.13")
    system "python3.13", "-m", "pip", "--python=#{libexec}/bin/python", "install",
           "--constraint", buildpath/"daemon/constraints.txt", buildpath/"clients/python", buildpath
    bin.install_symlink libexec/"bin/mlx-sidecar"
  end

  def post_install
    (var/"log/mlx-sidecar").mkpath # launchd makes the file and not its directory, and starts nothing without it
  end

  service do
    run [opt_bin/"mlx-sidecar", "serve"]
    keep_alive successful_exit: false
    process_type :interactive
    throttle_interval 10
    # Homebrew cannot set ExitTimeOut, and launchd's own is 5 s: a longer drain would end in SIGKILL.
    environment_variables MLX_SIDECAR_LOG_FILE:      var/"log/mlx-sidecar/daemon.log",
                          MLX_SIDECAR_DRAIN_TIMEOUT: "2"
    log_path var/"log/mlx-sidecar/launchd.log"
    error_log_path var/"log/mlx-sidecar/launchd.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/mlx-sidecar --version")
    assert_match "mlx-sidecar serve", shell_output("#{bin}/mlx-sidecar ps 2>&1", 3)
  end
end
